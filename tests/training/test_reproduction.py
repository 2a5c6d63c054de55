"""A table of runs: planned, run side by side, skipped, continued, and not stopped by one that fails."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import call, same_bytes

from pfa_convert import UserError, train
from pfa_convert.cli import cli
from pfa_convert.training.reproduction import plan, reproduce
from pfa_convert.training.run_folder import RunFolder

SHORT = ["train.epochs=2"]


def test_a_table_is_planned_seed_by_seed(tmp_path):
    runs = plan("mnist", tmp_path, {}, seeds=[0, 1])
    assert [run.seed for run in runs] == [0] * 7 + [1] * 7
    assert {run.folder.parent.name for run in runs} == {
        f"mnist-mlp-{rule}" for rule in ("bp", "fa", "dfa", "usf", "kp", "pfa", "pfa-o")
    }
    assert len(plan("cifar10", tmp_path, {"rule": ["bp", "pfa"]})) == 2 * 5
    assert len(plan("sparse", tmp_path, {"rule": ["pfa"], "density": ["0.3", "0.1"]}, seeds=[4])) == 2
    assert [run.folder.parent.name for run in plan("digits-mlp-pfa", tmp_path, {}, seeds=[0])] == [
        "digits-mlp-pfa"
    ]


STAND_IN = """#!/bin/sh
echo "$@" >> "$LIST"
[ -e "$LIST.go" ] || [ "$2" != imagenette-resnet18 ] || exit 1
echo "{}"
"""


def test_the_script_for_a_gpu_runs_valid_commands_and_continues(tmp_path):
    """A stand-in for the program writes down what it is asked for; the last but one fails at first."""
    program = tmp_path / "pfa-convert"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    asked = tmp_path / "asked"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = Path(__file__).parents[2] / "recipes" / "gpu-hour.sh"
    environment = {**os.environ, "PATH": path, "LIST": str(asked)}
    first = subprocess.run([script, "data", str(tmp_path / "out")], env=environment, capture_output=True)
    assert first.returncode != 0
    commands = [line.split() for line in asked.read_text().splitlines()]
    assert [words[0] for words in commands] == ["reproduce", *["bench"] * 4, "reproduce"]
    for words in commands:
        with cli.commands[words[0]].make_context(words[0], words[1:]) as context:
            if words[0] == "reproduce":
                rules = {"rule": context.params["rules"].split(",")} if context.params["rules"] else {}
                assert plan(context.params["table"], tmp_path / "runs", rules)
    asked.write_text("")
    (tmp_path / "asked.go").touch()
    subprocess.run([script, "data", str(tmp_path / "out")], env=environment, check=True)
    assert [line.split()[0] for line in asked.read_text().splitlines()] == ["reproduce"] * 3


@pytest.mark.parametrize(
    ("table", "only", "message"),
    [
        ("minst", {}, "unknown recipe 'minst'"),
        ("mnist", {"rules": ["bp"]}, "no variants by 'rules'; did you mean 'rule'"),
        ("mnist", {"rule": ["pfa", "pfao"]}, "no variant 'pfao' by rule; did you mean 'pfa"),
    ],
)
def test_a_wrong_table_or_variant_is_refused(tmp_path, table, only, message):
    with pytest.raises(UserError) as error:
        plan(table, tmp_path, only)
    assert message in str(error.value)


def test_what_is_finished_is_skipped_and_one_failure_stops_no_other(tmp_path):
    runs = plan("digits-mlp", tmp_path, {"rule": ["bp"]}, seeds=[0, 1, 2], settings=SHORT)
    broken = runs[1]
    broken.folder.mkdir(parents=True)
    (broken.folder / "log.jsonl").mkdir()  # the trainer cannot write there
    ended = {end.run: end.failure for end in reproduce(runs, jobs=2, settings=SHORT)}
    assert set(ended) == set(runs)
    assert {run for run, failure in ended.items() if failure} == {broken}
    assert ended[broken].startswith("exit code 2: pfa-convert:")

    (broken.folder / "log.jsonl").rmdir()
    before = {run: (run.folder / "result.json").stat().st_mtime_ns for run in runs if run != broken}
    assert all(end.failure is None for end in reproduce(runs, jobs=2, settings=SHORT))
    assert before == {run: (run.folder / "result.json").stat().st_mtime_ns for run in runs if run != broken}
    assert json.loads((broken.folder / "result.json").read_text())["epochs"] == 2


def test_a_stopped_table_is_continued_where_it_was(tmp_path):
    settings = ["train.epochs=80"]
    arguments = [
        "digits-mlp",
        "--rules",
        "pfa",
        "--seeds",
        "1",
        "--set",
        *settings,
        "--output",
        str(tmp_path),
    ]
    command = [sys.executable, "-m", "pfa_convert", "reproduce", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (run,) = plan("digits-mlp", tmp_path, {"rule": ["pfa"]}, seeds=[1], settings=settings)
    folder = RunFolder(run.folder)
    while len(folder.records()) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 130
    assert "stopped by SIGTERM" in (run.folder / "output.txt").read_text()
    assert not folder.result.exists() and len(folder.records()) < 81

    assert [end.failure for end in reproduce([run], jobs=1, settings=settings)] == [None]
    train(run.loaded, output=tmp_path / "alone", seed=1)
    assert same_bytes(folder.last, tmp_path / "alone" / "last.safetensors")


def test_a_folder_of_another_recipe_is_refused_before_anything_runs(tmp_path):
    (run,) = plan("digits-mlp-bp", tmp_path, {}, seeds=[0], settings=SHORT)
    train(run.loaded, output=run.folder, seed=0)
    with pytest.raises(UserError, match="holds a run of another recipe"):
        plan("digits-mlp", tmp_path, {}, settings=["train.optimizer.lr=3"])


def test_a_run_that_fails_in_its_first_epoch_leaves_the_others_reported(tmp_path):
    table = tmp_path / "two.yaml"
    table.write_text(
        "extends: digits-mlp-bp\nname: two\ntrain: {epochs: 1}\n"
        "variants: {speed: {good: {train: {epochs: 1}}, bad: {train: {optimizer: {lr: 1.0e+38}}}}}\n"
    )
    said = call("reproduce", table, "--output", tmp_path / "runs", "--seeds", "0", "--jobs", "1")
    assert said.code == 1, said.errors
    assert "1 of 2 runs failed" in said.printed and "two-bad" in said.printed
    assert "two-good" in (tmp_path / "runs" / "report-two" / "report.md").read_text()
