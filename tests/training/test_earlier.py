"""Runs of an earlier version go on as what they were, or are refused in a line.

The runs in `earlier/` were made by commit f716b3a, before recipes knew the option `law`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import call

from pfa_convert import UserError, alignment, load_recipe, train
from pfa_convert.reporting.reading import read_runs
from pfa_convert.training.checkpoint import load_model
from pfa_convert.training.run_folder import RunFolder
from pfa_convert.training.setup import make_model

SETTINGS = ["train.epochs=3", "model.hidden=[8]"]
RULES = ["pfa", "pfa-o"]


@pytest.fixture
def earlier(tmp_path):
    """A copy of the run of a rule."""

    def copied(rule):
        return RunFolder(shutil.copytree(Path(__file__).parent / "earlier" / rule, tmp_path / rule))

    return copied


@pytest.mark.parametrize("rule", RULES)
def test_an_earlier_checkpoint_holds_the_feedback_weights_that_its_log_tells_of(earlier, rule):
    folder = earlier(rule)
    assert folder.read_recipe().convert.options["law"] == "uniform"
    model = make_model(folder.read_recipe(), folder.seed, torch.device("cpu"))
    load_model(folder.last, model)
    measured, told = alignment(model), folder.records()[-1].alignment
    assert measured.keys() == told.keys()
    for site, values in told.items():
        assert measured[site] == pytest.approx(values, rel=1e-4)  # float32, by another version


@pytest.mark.parametrize("rule", RULES)
def test_an_earlier_run_of_a_packaged_recipe_is_extended_and_says_what_differs(earlier, rule):
    folder, name = earlier(rule), f"digits-mlp-{rule}"
    before = folder.records()
    told = json.loads(folder.result.read_text())["final_top1"]
    assert train(load_recipe(name, SETTINGS), output=folder.path, resume=True).final_top1 == told
    arguments = [*(word for setting in SETTINGS for word in ("--set", setting)), "--set", "train.epochs=4"]
    called = call("train", name, *arguments, "--output", folder.path, "--resume")
    assert called.code == 0 and "begun by an earlier version" in called.printed
    after = folder.records()
    assert [record.epoch for record in after] == [1, 2, 3, 4] and after[:3] == before
    # One epoch at a weight decay of 0.03 lets F turn on, not start anew at 80 degrees.
    assert 0 < before[-1].angle_deg - after[-1].angle_deg < 20
    assert load_recipe(folder.recipe).convert.options["law"] == "uniform"


def test_a_run_of_another_law_is_refused(earlier, tmp_path):
    folder = earlier("pfa")
    mine = load_recipe("digits-mlp-pfa", [*SETTINGS, "convert.options={expansion: 10}"])  # normal, by now
    with pytest.raises(UserError, match="law is uniform there and not given here"):
        train(mine, output=folder.path, resume=True)
    train(mine, output=tmp_path / "new")
    with pytest.raises(UserError, match="law is not given there and uniform here"):
        train(load_recipe("digits-mlp-pfa", SETTINGS), output=tmp_path / "new", resume=True)


def test_a_run_that_other_images_would_judge_is_refused(earlier):
    folder = earlier("pfa")
    folder.recipe.write_text(folder.recipe.read_text().replace("validation: 0", "validation: 100"))
    longer = load_recipe("digits-mlp-pfa", [*SETTINGS, "train.epochs=4", "data.validation=100"])
    with pytest.raises(UserError, match=r"an earlier version .* held out other images for validation"):
        train(longer, output=folder.path, resume=True)


def test_earlier_and_present_runs_of_a_recipe_are_one_group(earlier, tmp_path):
    folder = earlier("pfa")
    train(load_recipe("digits-mlp-pfa", SETTINGS), output=tmp_path / "present", seed=1)
    (experiment,) = read_runs([folder.path, tmp_path / "present"]).values()
    (variant,) = experiment.values()
    assert [run.seed for run in variant.runs] == [0, 1]
