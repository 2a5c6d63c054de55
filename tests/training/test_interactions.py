"""What a script meets that trains more than once, stops, averages, clips or shares its batches."""

import json
import math
import subprocess
import sys

import numpy
import pytest
import torch
from runs import ENVIRONMENT, TORCHRUN, call, run_in_two_processes

from pfa_convert import UserError, load_recipe, train
from pfa_convert.data.base import Shard
from pfa_convert.feedback.finding import feedback_weights
from pfa_convert.training import loop
from pfa_convert.training.batch import batches, clip
from pfa_convert.training.checkpoint import load_model
from pfa_convert.training.distributed import join
from pfa_convert.training.evaluation import evaluate
from pfa_convert.training.record import EpochRecord, means
from pfa_convert.training.run_folder import RunFolder
from pfa_convert.training.session import Session
from pfa_convert.training.setup import make_data, make_model

SMALL = ["train.epochs=1", "data.batch_size=256", "model.hidden=[16]"]


def small(rule="pfa", *settings):
    return load_recipe(f"digits-mlp-{rule}", [*SMALL, *settings])


def session_of(recipe):
    processes = join("cpu")
    return Session(recipe, 0, make_data(recipe.data, None, processes.device), processes)


def test_runs_of_many_rules_compile_in_one_process(tmp_path):
    for rule in ("bp", "fa", "usf", "kp", "pfa"):
        train(small(rule, "train.compile=true", "model.hidden=[8]"), output=tmp_path / rule)


def test_the_starts_of_all_layers_are_dropped_together():
    session = session_of(small("pfa", "model.hidden=[16, 16, 16]"))
    sites = [feedback for _, _, feedback in feedback_weights(session.model)]
    for index, feedback in enumerate(sites):
        feedback.get_buffer("forgetting")[0] = 0.0 if index else 1e-3
    session.coupling.steps = 99
    session.coupling.count_step()
    assert not any(feedback.pathway.forgotten for feedback in sites)
    sites[0].get_buffer("forgetting")[0] = 0.0
    session.coupling.steps = 199
    session.coupling.count_step()
    assert all(feedback.pathway.forgotten for feedback in sites)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_are_counted_over_the_whole_run(accumulation):
    session = session_of(small("bp", f"train.gradient_accumulation={accumulation}", "data.batch_size=500"))
    counted = [batch.step for epoch in (1, 2) for batch in batches(session, epoch)]
    assert counted == ([1, 2, 3, 4, 5, 6] if accumulation == 1 else [1, 1, 2, 3, 3, 4])


def test_phases_come_after_so_many_steps_whatever_the_length_of_an_epoch(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("pfa_convert.training.batch.feedback_phase", seen.append)
    train(small("wm", "train.epochs=4", "train.phase_interval=7"), output=tmp_path / "run")
    steps = 4 * math.ceil(1437 / 256)
    assert len(seen) == steps // 7 == 3


def test_the_norm_that_is_clipped_is_the_plain_models_whatever_the_strategy():
    scales = []
    for strategy in ("fused", "collapsed"):
        recipe = small("pfa", f"convert.options={{strategy: {strategy}, law: uniform}}")
        session = session_of(recipe)
        for parameter in session.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        clip(session, 0.5)
        assert len({parameter.grad.flatten()[0].item() for parameter in session.model.parameters()}) == 1
        scales.append(session.plain[0].grad.flatten()[0].item())
    elements = sum(parameter.numel() for parameter in session.plain)
    assert scales[0] == scales[1] == pytest.approx(0.5 / math.sqrt(elements), rel=1e-4)


def test_the_best_checkpoint_gives_the_averaged_weights_that_were_judged(tmp_path):
    recipe = small("pfa", "train.ema=0.97", "data.batch_size=128")
    result = train(recipe, output=tmp_path / "run")
    model, data = (
        make_model(recipe, 0, torch.device("cpu")),
        make_data(recipe.data, None, torch.device("cpu")),
    )
    load_model(tmp_path / "run" / "best.safetensors", model)
    score = evaluate(model, data.evaluation, 512, Shard(), recipe.train, torch.device("cpu"))
    assert score.top1 == result.best_top1


def test_a_run_that_another_process_finished_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    recipe, genuine = small("bp"), loop.make_data

    def slowly(*arguments):
        monkeypatch.setattr(loop, "make_data", genuine)
        train(recipe, output=tmp_path / "run")
        return genuine(*arguments)

    monkeypatch.setattr(loop, "make_data", slowly)
    with pytest.raises(UserError, match="holds a finished run"):
        train(recipe, output=tmp_path / "run")


def test_a_seed_of_numpys_is_a_seed(tmp_path):
    assert train(small("bp"), output=tmp_path / "run", seed=numpy.arange(3)[2]).seed == 2


def test_a_layer_that_begins_at_zero_has_no_angle_and_no_say_in_the_mean():
    found = means(
        {"1": {"angle_deg": 40.0, "norm_ratio": 1.0}, "2": {"angle_deg": math.nan, "norm_ratio": math.nan}}
    )
    assert found == {"angle_deg": 40.0, "norm_ratio": 1.0}


def test_a_log_is_json_where_an_angle_is_not_defined():
    undefined = {"angle_deg": math.nan, "norm_ratio": math.nan}
    record = EpochRecord(0, alignment={"1": undefined}, gradient_angle_deg={"1": math.nan})
    line = record.to_json()
    json.loads(line, parse_constant=pytest.fail)
    read = EpochRecord.from_json(line)
    assert math.isnan(read.alignment["1"]["angle_deg"]) and math.isnan(read.gradient_angle_deg["1"])


def test_another_rule_by_a_setting_is_another_variant():
    recipe = load_recipe("mnist-mlp-pfa", ["convert.rule=kp", "convert.options={}"])
    assert (recipe.name, recipe.variant, recipe.experiment) == ("mnist-mlp-kp", "kp", "mnist-mlp")
    assert recipe.expect is None
    assert load_recipe("mnist-mlp-pfa", ["convert.rule=pfa"]).expect is not None
    with pytest.raises(UserError, match=r"convert\.rule"):
        load_recipe("mnist-mlp-pfa", ["convert.rule=[kp]"])


def test_a_path_with_brackets_is_printed_as_it_is(tmp_path):
    said = call("train", "digits-mlp-bp", "--set", "train.epochs=1", "--output", tmp_path / "a[/b]")
    assert said.code == 0 and "a[/b]" in said.printed


FAILING = """
import sys
from pfa_convert import UserError, load_recipe, train
settings = ["train.epochs=1", "data.batch_size=512"]
for number, changes in enumerate([["data.dataset=mnist", "data.root=/nowhere"], [], []]):
    output = f"{sys.argv[1]}/file/run" if number == 1 else f"{sys.argv[1]}/{number}"
    try:
        train(load_recipe("digits-mlp-pfa", [*settings, *changes]), output=output, device="cpu")
    except UserError:
        print("refused", flush=True)
"""


@pytest.mark.xdist_group("two processes")
def test_processes_stay_together_where_the_main_one_fails(tmp_path):
    (tmp_path / "file").write_text("no folder")
    script = tmp_path / "script.py"
    script.write_text(FAILING)
    assert run_in_two_processes(script, tmp_path).count("refused") == 2
    assert RunFolder(tmp_path / "2").result.exists()


@pytest.mark.xdist_group("two processes")
def test_two_processes_print_one_result(tmp_path):
    command = ["-m", "pfa_convert", "train", "digits-mlp-bp", "--set", "train.epochs=1", "--json"]
    command += ["--set", "data.batch_size=512", "--output", str(tmp_path / "run"), "--device", "cpu"]
    said = subprocess.run(
        [*TORCHRUN, "--standalone", *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["epochs"] == 1


UNUSED = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.used, self.unused = nn.Linear(64, num_classes), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x.flatten(1))
"""


@pytest.mark.xdist_group("two processes")
def test_a_parameter_that_several_processes_would_wait_for_is_named(tmp_path):
    (tmp_path / "unused.py").write_text(UNUSED)
    command = ["-m", "pfa_convert", "train", "digits-mlp-pfa", "--set", "train.epochs=1", "--device", "cpu"]
    command += ["--set", "model={name: unused:Net, num_classes: 10}", "--overwrite"]
    alone, together = (
        subprocess.run(
            [*start, *command], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        for start in ([sys.executable], [*TORCHRUN, "--standalone"])
    )
    assert alone.returncode == 0, alone.stderr
    assert together.returncode and "the loss does not depend on unused.weight" in together.stderr
