"""A report never pools what is not one experiment: by what recipes say, whatever they are called."""

import json
import statistics

import pytest
from test_results import write_run
from training.runs import call

from pfa_convert.reporting.grouping import differences
from pfa_convert.reporting.page import write_report
from pfa_convert.reporting.reading import read_runs
from pfa_convert.reporting.results import paper
from pfa_convert.reporting.rows import rows

SETTINGS = {
    "lr=0.3": ["train.optimizer.lr=0.3"],
    "expansion=2": ["convert.options={expansion: 2}"],
    "hidden": ["model.hidden=[32]"],
}


def test_runs_of_other_settings_are_not_seeds_of_one_recipe(tmp_path):
    write_run(tmp_path / "plain" / "seed-0", "digits-mlp-pfa", 0, 95.0)
    write_run(tmp_path / "plain" / "seed-1", "digits-mlp-pfa", 1, 96.0)
    for index, (what, settings) in enumerate(SETTINGS.items()):
        write_run(tmp_path / what, "digits-mlp-pfa", 0, 70.0 + index, settings=settings)
    table = {row.recipe: row for row in rows(read_runs([tmp_path])["digits-mlp"])}
    assert len(table) == 4
    by_mean = {row.mean: (row.seeds, row.recipe) for row in table.values()}
    assert by_mean[95.5][0] == 2 and by_mean[70.0][0] == by_mean[71.0][0] == by_mean[72.0][0] == 1
    assert "lr=0.3" in by_mean[70.0][1] and "lr=0.05" in by_mean[95.5][1]
    assert "expansion=2" in by_mean[71.0][1] and "hidden=[32]" in by_mean[72.0][1]


def test_another_width_does_not_break_the_report(tmp_path):
    write_run(tmp_path / "a", "digits-mlp-pfa", 0, 95.0)
    write_run(tmp_path / "b", "digits-mlp-pfa", 1, 94.0, settings=["model.hidden=[32]"])
    lines = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["alignment"]["5"]  # one layer fewer
    (tmp_path / "b" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(read_runs([tmp_path]), tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "digits-mlp-pfa (hidden=[32])" in text and "digits-mlp-pfa (hidden=[128, 128])" in text


def test_a_seed_counts_once_by_its_longest_run(tmp_path):
    write_run(tmp_path / "a", "digits-mlp-pfa", 0, 95.0)
    write_run(tmp_path / "b", "digits-mlp-pfa", 0, 80.0, epochs=2)
    write_run(tmp_path / "c", "digits-mlp-pfa", 1, 97.0)
    (row,) = rows(read_runs([tmp_path])["digits-mlp"])
    assert (row.seeds, row.repeated) == (2, 1)
    assert (row.mean, row.std) == (96.0, pytest.approx(statistics.stdev([95, 97])))
    called = call("report", tmp_path, "--output", tmp_path / "report")
    assert "1 more of seeds that count already" in called.printed


def test_an_experiment_is_what_the_recipe_records(tmp_path):
    for name, rule in (("my-fast-net-fa", "fa"), ("my-fast-net-bp", "bp")):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(f"extends: digits-mlp-{rule}\nname: {name}\nexperiment: fast\nvariant: {rule}\n")
        write_run(tmp_path / "runs" / name, recipe, 0, 90.0)
    alone = tmp_path / "my-fast-net-usf.yaml"
    alone.write_text("extends: digits-mlp-usf\nname: my-fast-net-usf\n")
    write_run(tmp_path / "runs" / "alone", alone, 0, 80.0)
    found = read_runs([tmp_path / "runs"])
    assert {name: set(variants) for name, variants in found.items()} == {
        "fast": {"fa", "bp"},
        "my-fast-net-usf": {"usf", "bp"},  # the same task's bp is lent to it
    }


def test_runs_of_an_earlier_version_are_placed_by_the_packaged_recipe_of_their_name(tmp_path):
    write_run(tmp_path / "run", "mnist-sparse-pfa-0.3", 0, 98.0)
    kept = tmp_path / "run" / "recipe.yaml"
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(line for line in lines if not line.startswith(("experiment:", "variant:"))))
    assert list(read_runs([tmp_path])["mnist-sparse"]) == ["pfa-0.3"]


def test_only_runs_of_the_papers_length_are_compared_with_it(tmp_path):
    write_run(tmp_path / "a", "mnist-mlp-pfa", 0, 97.0, settings=["train.epochs=3"])
    (row,) = rows(read_runs([tmp_path])["mnist-mlp"])
    full = paper()["mnist-mlp"]["pfa"]["final_epoch"] + 1
    assert (row.epochs, row.of_epochs, row.paper_mean, row.difference) == (3, full, None, None)
    called = call("report", tmp_path, "--output", tmp_path / "report")
    assert "mnist-mlp-pfa has 3 of its 40 epochs" in called.printed
    assert "has 3 of its 40 epochs" in (tmp_path / "report" / "report.md").read_text()


def test_without_matplotlib_there_are_tables_and_a_way_to_figures(tmp_path, monkeypatch):
    write_run(tmp_path / "a", "digits-mlp-pfa", 0, 95.0)
    monkeypatch.setattr("pfa_convert.reporting.page.find_spec", lambda name: None)
    called = call("report", tmp_path, "--output", tmp_path / "report")
    assert called.code == 0 and "pip install '.[plots]'" in called.printed
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.md",
        "index.html",
        "results.json",
    }
    assert "95.00" in (tmp_path / "report" / "report.md").read_text()


def test_the_tables_as_json(tmp_path):
    write_run(tmp_path / "a", "digits-mlp-pfa", 0, 95.0)
    called = call("report", tmp_path, "--output", tmp_path / "report", "--json")
    assert json.loads(called.printed)["digits-mlp"][0]["mean"] == 95.0


def test_what_differs_is_named_as_shortly_as_possible():
    contents = [
        {"train.epochs": 5, "a.lr": 1, "b.lr": 1, "same": 0},
        {"train.epochs": 9, "a.lr": 2, "b.lr": 1, "same": 0},
        {"train.epochs": 9, "a.lr": 1, "b.lr": 3, "same": 0},
    ]
    assert differences(contents) == [
        "epochs=5, a.lr=1, b.lr=1",
        "epochs=9, a.lr=2, b.lr=1",
        "epochs=9, a.lr=1, b.lr=3",
    ]
    assert differences([{"a": 1}]) == [""] and differences([{"a": 1}, {}]) == ["a=1", "no a"]


def test_runs_that_differ_in_the_rounding_of_their_last_bits_are_seeds_of_one_recipe(tmp_path):
    write_run(tmp_path / "a", "digits-mlp-pfa", 0, 95.0)
    write_run(tmp_path / "b", "digits-mlp-pfa", 1, 97.0, settings=["train.compile=true"])
    write_run(tmp_path / "c", "digits-mlp-pfa", 2, 90.0, settings=["train.precision=bf16"])
    table = {row.seeds: row.mean for row in rows(read_runs([tmp_path])["digits-mlp"])}
    assert table == {2: 96.0, 1: 90.0}
