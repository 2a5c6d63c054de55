"""Whatever ends a run, it continues to the same bytes."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from runs import call, same_bytes, start

from pfa_convert import load_recipe, train
from pfa_convert.files import read_header
from pfa_convert.training import Stopped, Watcher
from pfa_convert.training.run_folder import RunFolder

SMALL = "model.hidden=[32]"
SETTINGS = ["--set", "train.epochs=10", "--set", "model.hidden=[256, 256]"]


class _Interrupt(Exception):
    pass


class InterruptAfter(Watcher):
    def __init__(self, epoch):
        self._epoch = epoch

    def epoch(self, record):
        if record.epoch == self._epoch:
            raise _Interrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = call("train", "digits-mlp-pfa", *SETTINGS, "--output", folder)
    assert result.code == 0, result.errors
    return folder


def records(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    timing = {"seconds", "images_per_second"}
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]


def test_a_run_killed_at_random_moments_resumes_to_the_same_bytes(whole, tmp_path):
    folder, generator, kills = tmp_path / "run", random.Random(0), 0
    while not (folder / "result.json").exists():
        process = start("digits-mlp-pfa", *SETTINGS, "--output", folder, "--resume")
        while not folder.exists() and process.poll() is None:
            time.sleep(0.01)
        # From the start of the run on, so that writing the folder's first files is hit too.
        if kills < 5:
            time.sleep(generator.choice([0.0, 0.01, 0.1, 0.4]))
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
    assert kills >= 3
    assert same_bytes(whole / "last.safetensors", folder / "last.safetensors")
    assert same_bytes(whole / "best.safetensors", folder / "best.safetensors")
    assert records(whole) == records(folder)


class _Killed(BaseException):
    """Ends a run as SIGKILL does, as far as files go: nothing catches it, nothing tidies up."""


def test_a_run_that_ends_at_any_step_of_writing_its_files_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    recipe = load_recipe("digits-mlp-pfa", [SMALL, "train.epochs=2"])
    steps, last_step = 0, None

    def dies_at_last_step(write):
        def step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps == last_step:
                raise _Killed
            return write(*arguments, **options)

        return step

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (RunFolder, "append")):
        monkeypatch.setattr(owner, name, dies_at_last_step(getattr(owner, name)))
    train(recipe, output=tmp_path / "whole")
    in_all = steps
    assert in_all > 15
    for last_step in range(1, in_all + 1):
        steps, folder = 0, tmp_path / f"killed at {last_step}"
        with pytest.raises(_Killed):
            train(recipe, output=folder)
        steps = -1_000_000
        train(recipe, output=folder, resume=True)
        assert same_bytes(tmp_path / "whole" / "last.safetensors", folder / "last.safetensors"), last_step
        assert records(tmp_path / "whole") == records(folder), last_step


class TerminateAfter(Watcher):
    def __init__(self, epoch):
        self._epoch = epoch

    def epoch(self, record):
        if record.epoch == self._epoch:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_sigterm_saves_within_the_epoch(tmp_path, accumulation):
    recipe = load_recipe(
        "digits-mlp-pfa", [SMALL, "train.epochs=4", f"train.gradient_accumulation={accumulation}"]
    )
    train(recipe, output=tmp_path / "whole")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="in epoch 3; continue with --resume"):
        train(recipe, output=tmp_path / "run", watcher=TerminateAfter(2))
    assert signal.getsignal(signal.SIGTERM) == handler
    progress = read_header(tmp_path / "run" / "last.safetensors")["progress"]
    assert (progress["epoch"], progress["batch"]) == (2, accumulation)
    train(recipe, output=tmp_path / "run", resume=True)
    assert same_bytes(tmp_path / "whole" / "last.safetensors", tmp_path / "run" / "last.safetensors")
    assert records(tmp_path / "whole") == records(tmp_path / "run")


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("digits-mlp-pfa", [SMALL, "train.ema=0.9"]),
        ("digits-mlp-pfa", [SMALL, "train.gradient_accumulation=4"]),
        ("digits-mlp-pfa", [SMALL, "train.optimizer={name: adamw, lr: 0.002, weight_decay: 0.01}"]),
        ("digits-mlp-pfa", [SMALL, "train.precision=fp16"]),
        (
            "digits-mlp-brsf",
            ["data={dataset: synthetic, options: {images: 96}}", "model={name: paper/resnet20, width: 4}"],
        ),
        (
            "digits-mlp-pfa",
            [
                "data={dataset: synthetic, options: {images: 96}, batch_size: 16}",
                "model={name: timm/vit_tiny_patch16_224, img_size: 32, patch_size: 8, embed_dim: 16, "
                "depth: 1, num_heads: 2}",
                "train.optimizer={name: adamw, lr: 0.001, weight_decay: 0.05}",
                "train.forgetting=5",
                "convert.options={start_norm: weight}",
            ],
        ),
        # So strong a decay that the coupled feedback forgets its first value, and drops it.
        (
            "digits-mlp-pfa",
            [
                SMALL,
                "train.epochs=10",
                "train.optimizer.weight_decay=0.5",
                "train.weight_decay_schedule={milestones: [9]}",
            ],
        ),
    ],
    ids=["ema", "accumulation", "adamw", "fp16", "batchnorm and random feedback", "transformer", "forgotten"],
)
def test_every_kind_of_state_is_in_the_checkpoint(tmp_path, base, settings):
    recipe = load_recipe(base, ["train.epochs=3", *settings])
    train(recipe, output=tmp_path / "whole")
    for epoch in range(1, recipe.train.epochs):
        folder = tmp_path / f"after {epoch}"
        with pytest.raises(_Interrupt):
            train(recipe, output=folder, watcher=InterruptAfter(epoch))
        train(recipe, output=folder, resume=True)
        assert same_bytes(tmp_path / "whole" / "last.safetensors", folder / "last.safetensors")


def test_a_log_line_half_written_is_written_again(tmp_path):
    recipe = load_recipe("digits-mlp-bp", ["train.epochs=3"])
    with pytest.raises(_Interrupt):
        train(recipe, output=tmp_path, watcher=InterruptAfter(2))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"epoch": 3, "train_lo')
    train(recipe, output=tmp_path, resume=True)
    assert [record["epoch"] for record in records(tmp_path)] == [0, 1, 2, 3]


def test_a_run_killed_before_its_first_files_starts_anew(tmp_path):
    (tmp_path / "environment.json").write_text("{}")
    recipe = load_recipe("digits-mlp-bp", ["train.epochs=1"])
    assert train(recipe, output=tmp_path, resume=True).epochs == 1
