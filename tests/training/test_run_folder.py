"""A run's folder: nothing in it is lost by accident, what may be changed may be, and who may read it."""

import json
import math
import os
import re
import signal
import stat
import subprocess
import time

import pytest
import torch
from runs import ENVIRONMENT, call, command, same_bytes

from pfa_convert import UserError, convert, load_recipe, save, train
from pfa_convert.models import build
from pfa_convert.reporting.console import alignment_line
from pfa_convert.reporting.provenance import provenance
from pfa_convert.reporting.reading import read_run
from pfa_convert.training.run_folder import RunFolder
from pfa_convert.training.stopping import StopRequest
from pfa_convert.training.threads import suitable_threads

SMALL = ["model.hidden=[32]"]


def recipe(*settings, name="digits-mlp-pfa"):
    return load_recipe(name, [*SMALL, "train.epochs=2", *settings])


def test_a_run_is_replaced_only_on_request(tmp_path):
    train(recipe(), output=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"holds a finished run: --resume .* --overwrite replaces it"):
        train(recipe("train.epochs=1"), output=tmp_path)
    with pytest.raises(UserError, match="choose one of them"):
        train(recipe(), output=tmp_path, resume=True, overwrite=True)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    old_events = set((tmp_path / "tensorboard").iterdir())
    result = train(recipe(name="digits-mlp-fa"), output=tmp_path, overwrite=True)
    assert json.loads((tmp_path / "result.json").read_text())["name"] == result.name == "digits-mlp-fa"
    assert not old_events & set((tmp_path / "tensorboard").iterdir())


def test_a_run_that_was_begun_is_not_lost_either(tmp_path):
    train(recipe(), output=tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(UserError, match="holds a run that was begun"):
        train(recipe(), output=tmp_path)


@pytest.mark.parametrize("rule", ["pfa", "brsf"])
def test_an_extended_run_is_the_longer_run(tmp_path, rule):
    schedule = ["train.lr_schedule={milestones: [1, 3], gamma: 0.3}"]
    short, long = (
        recipe(*schedule, f"train.epochs={epochs}", name=f"digits-mlp-{rule}") for epochs in (2, 4)
    )
    train(short, output=tmp_path / "extended")
    extended = train(long, output=tmp_path / "extended", resume=True)
    whole = train(long, output=tmp_path / "whole")
    assert extended.epochs == 4 and extended.final_top1 == whole.final_top1
    assert same_bytes(tmp_path / "extended" / "last.safetensors", tmp_path / "whole" / "last.safetensors")
    assert load_recipe(tmp_path / "extended" / "recipe.yaml") == long
    assert [r.epoch for r in RunFolder(tmp_path / "extended").records()] == list(range(5))
    assert train(long, output=tmp_path / "extended", resume=True) == extended


def test_a_refusal_names_the_keys_that_differ(tmp_path):
    train(recipe(), output=tmp_path)
    with pytest.raises(UserError) as error:
        train(recipe("train.optimizer.lr=0.3", "data.batch_size=16"), output=tmp_path, resume=True, seed=5)
    for words in (
        "train.optimizer.lr is 0.05 there and 0.3 here",
        "data.batch_size is 32 there and 16 here",
        "seed is 0 there and 5 here",
    ):
        assert words in str(error.value)
    with pytest.raises(UserError, match=r"train\.epochs is 2 there and 1 here, 2 are done"):
        train(recipe("train.epochs=1"), output=tmp_path, resume=True)
    assert train(recipe("train.seeds=[0, 1]", "data.workers=0"), output=tmp_path, resume=True).epochs == 2


def test_a_schedule_that_depends_on_the_length_cannot_be_extended(tmp_path):
    cosine = "train.lr_schedule={name: cosine}"
    train(recipe(cosine), output=tmp_path)
    with pytest.raises(UserError, match="the cosine lr_schedule of its epochs depends on it"):
        train(recipe(cosine, "train.epochs=4"), output=tmp_path, resume=True)


def test_a_run_begun_on_one_machine_ends_on_another_and_says_so(tmp_path):
    long = ["train.epochs=3", "train.lr_schedule={name: constant}"]
    train(recipe(*long, "train.epochs=1", "train.compile=false"), output=tmp_path / "run", threads=2)
    file = tmp_path / "run" / "environment.json"
    begun = json.loads(file.read_text()) | {"device": "NVIDIA Something", "date": "2020-01-01"}
    file.write_text(json.dumps(begun))
    settings = [*long, "train.compile=true", "train.channels_last=true"]
    for epochs in (2, 3):
        train(recipe(*settings, f"train.epochs={epochs}"), output=tmp_path / "run", resume=True, threads=1)
    whole = train(recipe(*long), output=tmp_path / "whole")

    told = json.loads(file.read_text())
    second, third = told.pop("continued")
    assert told == begun
    assert (second["after_epoch"], second["device"], second["threads"]) == (1, "cpu", 1)
    assert set(second) == {"after_epoch", "date", "command", "device", "threads"}
    assert third["after_epoch"] == 2 and set(third) == {"after_epoch", "date", "command"}
    run = read_run(RunFolder(tmp_path / "run"))
    assert run.records[-1].train_loss == pytest.approx(RunFolder(tmp_path / "whole").records()[-1].train_loss)
    assert run.accuracies[-1] == pytest.approx(whole.final_top1, abs=0.5)
    headings = dict(provenance([run]))
    assert headings["device"].startswith("NVIDIA Something, cpu") and headings["threads"] == "2, 1"
    assert headings["runs"] == f"1, 2020-01-01 to {third['date'][:10]}"


def test_files_are_readable_by_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        train(recipe(), output=tmp_path / "run")
        save(convert(build("paper/mlp"), "fa"), tmp_path / "model.safetensors", "paper/mlp")
    finally:
        os.umask(before)
    written = [*(p for p in (tmp_path / "run").iterdir() if p.is_file()), tmp_path / "model.safetensors"]
    assert len(written) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o640}


@pytest.mark.parametrize(("number", "words"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, words):
    arguments = ["digits-mlp-pfa", "--set", "train.epochs=40", "--output"]
    long = load_recipe("digits-mlp-pfa", ["train.epochs=40"])
    folder = RunFolder(tmp_path / "run")
    process = subprocess.Popen(
        command(*arguments, folder.path),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(folder.records()) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and said.count("\n") == 1
    assert f"stopped by {words} in epoch" in said and "continue with --resume" in said
    assert len(folder.records()) < 41
    train(long, output=folder.path, resume=True)
    train(long, output=tmp_path / "whole")
    assert same_bytes(folder.last, tmp_path / "whole" / "last.safetensors")


def test_a_second_interrupt_does_not_wait():
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.made and request.by == "SIGTERM"
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.made and request.by == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_threads_are_chosen_by_the_size_of_the_work(tmp_path):
    digits = build("paper/mlp", in_features=64, hidden=[128, 128])
    assert suitable_threads(digits, (1, 8, 8), 32, most=8) == 1
    # 2 * 784 * 512 + 2 * 512 * 512 + 2 * 512 * 10 operations an image, 64 of them, by 20 million.
    assert suitable_threads(build("paper/mlp"), (1, 28, 28), 64, most=8) == 4
    assert suitable_threads(build("paper/resnet20"), (3, 32, 32), 128, most=8) == 8
    before = torch.get_num_threads()
    train(recipe(), output=tmp_path / "chosen")
    train(recipe(), output=tmp_path / "asked", threads=2)
    seen = [
        json.loads((tmp_path / n / "environment.json").read_text())["threads"] for n in ("chosen", "asked")
    ]
    assert seen == [1, 2] and torch.get_num_threads() == before


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there_is_named(tmp_path, device):
    with pytest.raises(UserError, match=r"--device: (unknown device|this machine cannot use)"):
        train(recipe(), output=tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def test_the_command_says_which_variant_it_takes_and_compares_whole_runs_only(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: digits-mlp\nname: mine\ntrain: {epochs: 2}\nexpect: {metric: test_top1, mean: 80}\n"
    )
    whole = call("train", path, "--set", "model.hidden=[32]", "--output", tmp_path / "whole")
    assert "is taken as it begins: rule bp. Its variants, such as" in whole.printed
    assert f"{path}:sa: rule bp, fa, dfa" in whole.printed
    top1 = json.loads((tmp_path / "whole" / "result.json").read_text())["final_top1"]
    assert f"this run {top1 - 80:+.2f}" in whole.printed
    part = call("train", f"{path}:pfa", "--set", "train.epochs=1", "--output", tmp_path / "part")
    assert "after 2 epochs; 1 of them are too few to compare" in part.printed
    assert "is taken as" not in part.printed


def test_a_recipe_records_its_experiment(tmp_path):
    path = tmp_path / "my-fast-net-fa.yaml"
    path.write_text("model: {name: paper/mlp}\nconvert: {rule: fa}\n")
    assert load_recipe(path).experiment == "my-fast-net-fa" and load_recipe(path).variant is None
    packaged = load_recipe("mnist-sparse-pfa-0.3", ["name=quick"])
    assert (packaged.name, packaged.experiment, packaged.variant) == ("quick", "mnist-sparse", "pfa-0.3")


@pytest.mark.parametrize(
    ("rule", "settings", "words"),
    [
        ("pfa", [], "of F is what it began with, where it is most: to align further, raise"),
        ("pfa", ["train.optimizer.weight_decay=0.3"], "of F is what it began with, where it is most"),
        (
            "pfa",
            ["train.forgetting=5000"],
            "to align further, train longer, or lower train.forgetting (now 5000",
        ),
        ("fa", [], "path angles"),
        ("dfa", [], ""),
    ],
)
def test_a_run_says_how_aligned_it_has_ended(tmp_path, rule, settings, words):
    loaded = recipe("train.weight_decay_schedule={name: constant}", *settings, name=f"digits-mlp-{rule}")
    result = train(loaded, output=tmp_path)
    if rule == "dfa":
        assert not result.angle_deg
        return
    line = alignment_line(loaded, result)
    angles = result.angle_deg.values()
    assert line.startswith(f"path angles {min(angles):.1f} to {max(angles):.1f} degrees") and words in line
    assert ("to align further" in line) == ("to align further" in words)
    if rule == "pfa":
        # By the formula: F = T(W) + s K, where K is what F began with beyond T(W), and s forgets.
        assert 0 < max(result.start_left.values()) < 1
        asked = re.search(r"now 0\.03, to about ([\d.]+)\)", line)
        if asked:
            left = max(result.start_left.values())
            assert float(asked.group(1)) == pytest.approx(0.03 * math.log(0.01) / math.log(left), rel=0.1)
