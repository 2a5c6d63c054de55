"""A line of the log: the format in which runs of all versions are read."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pfa_convert.training import EpochRecord
from pfa_convert.training.record import RunResult
from pfa_convert.training.run_folder import RunFolder

RESULTS = Path(__file__).parents[2] / "docs" / "results"
LINE = (
    '{"epoch": 3, "train_loss": 0.5, "train_top1": 80.0, "validation_loss": 0.6, "validation_top1": 79.0, '
    '"validation_top5": 99.0, "test_loss": 0.7, "test_top1": 78.0, "test_top5": 98.0, "angle_deg": 20.0, '
    '"norm_ratio": 1.1, "lr": 0.1, "weight_decay": 0.0, "seconds": 2.5, "images_per_second": 400.0, '
    '"alignment": {"1": {"angle_deg": 20.0, "norm_ratio": 1.1}}, "gradient_angle_deg": {"1": 30.0}}'
)


def read(path):
    return RunResult.from_json(path.read_text())


def test_a_line_is_written_as_it_was_read():
    assert EpochRecord.from_json(LINE).to_json() == LINE
    logs = sorted(RESULTS.rglob("log.jsonl"))
    assert len(logs) > 100
    for log in logs:
        for line in log.read_text().splitlines():
            # An earlier version wrote nan where a mean was not defined.
            defined = {key: value for key, value in json.loads(line).items() if value == value}
            assert EpochRecord.from_json(line).to_json() == json.dumps(defined), log


def test_a_line_is_json_where_a_number_is_not_finite():
    record = replace(
        EpochRecord.from_json(LINE), test_loss=math.nan, alignment={"1": {"norm_ratio": math.inf}}
    )
    again = EpochRecord.from_json(record.to_json())
    json.loads(record.to_json(), parse_constant=pytest.fail)
    assert again.test_loss is None and again.train_loss == 0.5
    assert math.isnan(again.alignment["1"]["norm_ratio"])
    assert math.isnan(EpochRecord.from_json(LINE.replace("0.7", "NaN")).test_loss)  # of an earlier version


def test_a_result_is_written_as_it_was_read_and_is_json_where_an_angle_is_not_defined():
    results = sorted(RESULTS.rglob("result.json"))
    assert len(results) > 100
    for result in results:
        written, again = (json.loads(text) for text in (result.read_text(), read(result).to_json()))
        assert again == {"start_left": {}} | written, result
    undefined = replace(read(results[0]), angle_deg={"1": math.nan, "2": 3.0})
    json.loads(undefined.to_json(), parse_constant=pytest.fail)
    angles = RunResult.from_json(undefined.to_json()).angle_deg
    assert math.isnan(angles["1"]) and angles["2"] == 3.0


@pytest.mark.parametrize(("left_out", "top1"), [((), 79.0), (("test",), 79.0), (("validation",), 78.0)])
def test_a_run_is_evaluated_on_the_images_held_out_if_there_are_any(left_out, top1):
    content = {key: value for key, value in json.loads(LINE).items() if not key.startswith(left_out)}
    assert EpochRecord.from_json(json.dumps(content)).top1 == top1


def test_what_a_later_version_adds_is_passed_over_and_kept(tmp_path):
    folder = RunFolder(tmp_path)
    later = LINE.replace("{", '{"flops": [1, 2], ', 1)
    half = LINE[:50]
    folder.log.write_text(f"{later}\n{later.replace(': 3', ': 4', 1)}\n{half}")
    assert [record.epoch for record in folder.records()] == [3, 4]
    folder.truncate(3)
    assert folder.log.read_text() == f"{later}\n"
