"""What `inspect` says of a model, against the definitions written out in float64."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from harness import relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import convert, couple, inspect, save
from pfa_convert.cli import cli
from pfa_convert.models import build


def problem(rule, **options):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5)
    ).double()
    x, targets = torch.randn(8, 4, 6, 6).double(), torch.arange(8) % 5
    return convert(plain, rule, options=options), x, targets


def trained(model, x, targets, coupled=True):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1)
    if coupled:
        couple(model, optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), targets).backward()
        optimizer.step()
    return model


def test_the_eigenvalues_are_those_of_B_times_its_transpose():
    model, *_ = problem("pfa", expansion=3, strategy="fused")
    B = model[0].feedback_of_weight.B
    expected = torch.cat([torch.linalg.svdvals(block) ** 2 for block in B]).sort().values
    ours = torch.tensor(inspect(model)["0"].eigenvalues, dtype=torch.float64)
    assert relative_error(ours, expected) < 1e-12


@pytest.mark.parametrize(
    "options", [{"expansion": 3}, {"expansion": 1}, {"expansion": 3, "feedback_density": 0.5}]
)
def test_the_coupled_form_has_the_same_figures(options):
    options["law"] = "uniform"
    found = [inspect(trained(*problem("pfa", strategy=s, **options))) for s in ("fused", "collapsed")]
    for name in ("0", "3"):
        plastic, collapsed = (figures[name] for figures in found)
        assert collapsed.angle_deg == pytest.approx(plastic.angle_deg, abs=1e-6)
        assert collapsed.share_of_start == pytest.approx(plastic.share_of_start, rel=1e-6)
        assert collapsed.eigenvalues == pytest.approx(plastic.eigenvalues, rel=1e-9)


@pytest.mark.parametrize("coupled", [False, True])
def test_the_share_of_the_start_decays_by_the_optimizers_own_factor(coupled):
    model, x, targets = problem("kp", strategy="collapsed" if coupled else "fused")
    W, feedback = model[0].weight.detach().clone(), model[0].feedback_of_weight
    F = feedback.feedback_weight(W).clone()
    trained(model, x, targets, coupled)
    left = (1 - 0.05 * 0.1) ** 20 * (F - W).norm()
    now = model[0].feedback_of_weight.feedback_weight(model[0].weight).norm()
    assert inspect(model)["0"].share_of_start == pytest.approx((left / now).item(), rel=1e-9)


def test_the_gradient_angle_is_that_to_backpropagation():
    model, x, targets = problem("fa")
    found = inspect(model, functional.cross_entropy, x, targets)
    assert found["3"].gradient_angle_deg < 1e-6  # the last layer's error is the true one
    gradients = []
    for _ in ("fa", "bp"):
        model.zero_grad()
        functional.cross_entropy(model(x), targets).backward()
        gradients.append(model[0].weight.grad.flatten().clone())
        with torch.no_grad():
            model[3].feedback_of_weight.F0.copy_(model[3].weight)
    cosine = functional.cosine_similarity(*gradients, dim=0)
    assert found["0"].gradient_angle_deg == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-6)


@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "dfa"])
def test_what_a_rule_does_not_have_is_nan(rule):
    model, x, targets = problem(rule)
    site = inspect(model, functional.cross_entropy, x, targets)["0"]
    assert math.isnan(site.share_of_start) and site.eigenvalues == ()
    assert math.isnan(site.angle_deg) == (rule == "dfa")
    assert (site.gradient_angle_deg == 0) == (rule == "bp")
    assert site.to_dict()["share_of_start"] is None


def test_the_model_is_left_as_it_was():
    model, x, targets = problem("pfa")
    trained(model, x, targets)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inspect(model, functional.cross_entropy, x, targets)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_run_is_inspected(tmp_path):
    folder, picture = tmp_path / "a run", tmp_path / "inspection.png"
    done = run("train", "digits-mlp-pfa", "--set", "train.epochs=2", "--output", folder)
    assert done.exit_code == 0, done.output
    shown = run("inspect", folder, "--json", "--plot", picture)
    assert shown.exit_code == 0, shown.output
    sites = json.loads(shown.output)
    logged = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["alignment"]
    for name, figures in logged.items():
        assert sites[name]["angle_deg"] == pytest.approx(figures["angle_deg"], abs=1e-3)
        assert 0 <= sites[name]["gradient_angle_deg"] <= 90
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_file_is_inspected(tmp_path):
    file = tmp_path / "model.safetensors"
    save(convert(build("paper/resnet20"), "pfa", options={"expansion": 1}), file, "paper/resnet20")
    shown = run("inspect", file)
    assert shown.exit_code == 0, shown.output
    assert "layer3.2.conv2" in shown.output


def test_what_is_no_run_and_no_file_is_refused(tmp_path):
    for path, reason in ((tmp_path, "is not the folder of a run"), (tmp_path / "none.safetensors", "")):
        shown = run("inspect", path)
        assert shown.exit_code != 0 and reason in str(shown.exception or shown.output)
