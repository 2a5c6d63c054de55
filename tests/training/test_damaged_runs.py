"""A run's folder in use, or after something happened to it: one line names the file, nothing is lost."""

import json
import signal
import time

import pytest
import torch
from runs import call, same_bytes, start

from pfa_convert import UserError, load_recipe, train
from pfa_convert.reporting.reading import read_run
from pfa_convert.training.run_folder import RunFolder
from pfa_convert.training.watcher import Watcher

SETTINGS = ("--set", "model.hidden=[16]", "--set", "train.epochs=2")


def recipe(*settings):
    return load_recipe("digits-mlp-pfa", [*SETTINGS[1::2], *settings])


@pytest.fixture
def folder(tmp_path):
    train(recipe(), output=tmp_path / "run")
    return RunFolder(tmp_path / "run")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}


def test_a_second_process_does_not_write_the_same_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    first = start("digits-mlp-pfa", "--set", "train.epochs=100000", "--output", folder.path)
    while not (folder.last.exists() and folder.records()):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    settings = ["train", "digits-mlp-pfa", "--set", "train.epochs=100000", "--output", folder.path]
    for how in ("--resume", "--overwrite"):
        second = call(*settings, how)
        assert second.code == 2 and "another process is at this run" in second.errors
        assert second.errors.count("\n") == 1
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = max(record.epoch for record in folder.records())
    longer = call(*settings[:3], f"train.epochs={done + 3}", *settings[4:], "--resume")
    assert longer.code == 0, longer.errors


@pytest.mark.parametrize("resume", [False, True])
def test_what_is_left_of_a_run_without_its_recipe_is_not_overwritten(folder, tmp_path, resume):
    folder.recipe.unlink()
    before = content(folder)
    with pytest.raises(UserError, match=r"holds result.json, last.safetensors, .*without its recipe.yaml"):
        train(recipe(), output=folder.path, resume=resume)
    assert content(folder) == before
    train(recipe(), output=folder.path, overwrite=True)
    whole = tmp_path / "whole"
    train(recipe(), output=whole)
    assert same_bytes(folder.last, whole / "last.safetensors")


def test_a_run_that_has_lost_its_checkpoint_does_not_begin_anew_unasked(folder):
    folder.last.unlink()
    whole = train(recipe(), output=folder.path, resume=True)  # a finished run needs none
    assert whole.epochs == 2
    folder.result.unlink()
    before = content(folder)
    with pytest.raises(UserError, match=r"2 epochs are done, but last.safetensors is not there"):
        train(recipe(), output=folder.path, resume=True)
    assert content(folder) == before


DAMAGE = ["{", "[]", '{"a": 1}', '{"seed": 0, "continued": [3]}', "\x00\x01", "null"]
PARTS = ["[]", '""', '[["a", 1]]', '{"date": 3}', '{"command": ["a"], "date": "2026"}']


@pytest.mark.parametrize(
    "more", ['"format": "x"', '"format": null', *(f'"continued": [{part}]' for part in PARTS)]
)
def test_an_environment_of_other_kinds_of_things_is_damaged(folder, more):
    folder.environment.write_text(f'{{"seed": 0, {more}}}')
    for reading in (folder.read_environment, lambda: read_run(folder)):
        with pytest.raises(UserError, match=r"environment\.json: is damaged"):
            reading()


@pytest.mark.parametrize("file", ["environment.json", "result.json", "recipe.yaml"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_in_one_line(folder, file, damage):
    (folder.path / file).write_text(damage)
    commands = [("train", "digits-mlp-pfa", *SETTINGS, "--output", folder.path, "--resume")]
    if file != "result.json":  # the report reads logs
        commands.append(("report", folder.path, "--output", folder.path / "report"))
    for command in commands:
        called = call(*command)
        assert called.code == 2 and called.errors.count("\n") == 1 and file in called.errors, called.errors


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_log_the_last_half_line_alone_may_be_damaged(folder, damage):
    whole = folder.log.read_text()
    folder.result.unlink()
    folder.log.write_text(whole + damage)
    assert len(folder.records()) == 3
    folder.log.write_text(damage + "\n" + whole)
    resume = ("train", "digits-mlp-pfa", *SETTINGS, "--output", folder.path, "--resume")
    for command in (resume, ("report", folder.path, "--output", folder.path / "report")):
        called = call(*command)
        assert called.code == 2 and called.errors.count("\n") == 1 and "log.jsonl" in called.errors


def test_keys_of_a_later_version_are_passed_over(folder):
    later = {**json.loads(folder.result.read_text()), "energy": 3.0}
    folder.result.write_text(json.dumps(later))
    assert train(recipe(), output=folder.path, resume=True).epochs == 2


def test_a_log_that_lacks_epochs_is_told_of(folder):
    folder.log.unlink()
    folder.result.unlink()
    notes = []

    class Noting(Watcher):
        def note(self, text):
            notes.append(text)

    train(recipe("train.epochs=3"), output=folder.path, resume=True, watcher=Noting())
    assert any(note.endswith("log.jsonl has 0 of the 2 epochs that are done") for note in notes)


def test_a_report_says_which_run_has_lost_its_log(folder):
    folder.log.unlink()
    reported = call("report", folder.path, "--output", folder.path / "report")
    assert reported.code == 2 and "holds a result without its log.jsonl" in reported.errors


def test_a_run_of_no_epochs_is_as_good_as_it_begins(tmp_path):
    untrained = train(recipe("train.epochs=0"), output=tmp_path)
    assert untrained.best_top1 == untrained.final_top1 and untrained.best_epoch == 0
    assert 0 <= untrained.final_top1 <= 100 and torch.isfinite(torch.tensor(untrained.final_top1))
    reported = call("report", tmp_path, "--output", tmp_path / "report")
    assert reported.code == 2 and "holds no run that has completed an epoch" in reported.errors
