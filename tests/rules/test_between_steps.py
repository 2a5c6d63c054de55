"""Rules whose feedback weight learns between the steps, against what their sources write."""

import copy

import pytest
import torch
from harness import EXACT, cases, gradients, literal, problem, relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import UserError, alignment, convert, feedback_phase
from pfa_convert.models import build

CASES = {case.name: case for case in cases()}


def noise_of(feedback, shape):
    """The noise that the next phase will draw."""
    generator = torch.Generator().manual_seed(int(feedback.noise))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def regularizer(rule, x, W, F):
    """What a linear layer's feedback weight descends, as Kunin et al. write it, mean over the examples."""
    y = x @ W.T
    amp = -((x @ F.T) * y).sum(1).mean()
    null = (y @ F).square().sum(1).mean() / 2
    decay = F.square().sum() / 2
    return amp + decay if rule == "wm" else 0.7 * amp + 0.3 * null + 0.2 * decay


@pytest.mark.parametrize("rule", ["wm", "ia"])
def test_a_phase_descends_the_regularizer_of_the_source(rule):
    options = {"samples": 20, "rate": 0.01}
    if rule == "ia":
        options |= {"amp": 0.7, "null": 0.3, "decay": 0.2}
    model = convert(nn.Sequential(nn.Linear(7, 5)).double(), rule, options=options)
    feedback, W = model[0].feedback_of_weight, model[0].weight.detach()
    for _ in range(2):
        F = feedback.F.clone().requires_grad_()
        regularizer(rule, noise_of(feedback, (20, 7)), W, F).backward()
        feedback_phase(model)
        assert relative_error(feedback.F, F.detach() - 0.01 * F.grad) <= EXACT


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("conv")])
def test_a_convolutions_mirror_sees_noise_at_each_kernel_position(name):
    """One output position of the convolution, its patch filled with noise, is one sample of the mirror."""
    layer = copy.deepcopy(CASES[name].layer)
    model = convert(nn.Sequential(layer).double(), "wm", options={"samples": 4, "rate": 0.5})
    feedback, W = model[0].feedback_of_weight, model[0].weight.detach()
    groups = layer.groups
    x = noise_of(feedback, (groups, 4, W[0].numel()))
    F = feedback.F.clone()
    expected = torch.zeros_like(F)
    apply = (functional.conv1d, functional.conv2d, functional.conv3d)[W.dim() - 3]
    for sample in range(4):
        patch = x[:, sample].reshape(1, -1, *W.shape[2:])
        probe = W.clone().requires_grad_()
        y = apply(patch, probe, groups=groups)
        y.backward(y.detach())  # the gradient of a weight is its error times its input
        expected += probe.grad / 4
    feedback_phase(model)
    assert relative_error(feedback.F, F + 0.5 * (expected - F)) <= EXACT


def test_symmetric_alignment_takes_its_share_of_the_difference():
    model = convert(nn.Sequential(nn.Linear(7, 5)).double(), "sa", options={"rate": 0.25})
    feedback, W = model[0].feedback_of_weight, model[0].weight.detach()
    F = feedback.F.clone()
    feedback_phase(model)
    assert relative_error(feedback.F, 0.75 * F + 0.25 * W) <= EXACT


@pytest.mark.parametrize("rule", ["wm", "ia", "sa"])
@pytest.mark.parametrize("name", CASES)
def test_the_error_goes_through_the_learned_F(rule, name):
    case = CASES[name]
    model = convert(nn.Sequential(case.layer).double(), rule)
    feedback_phase(model)
    x, delta = problem(case)
    dx, parameters = literal(case.layer, model[0].feedback_of_weight.F, x, delta)
    got_dx, got = gradients(model, x, delta)
    assert relative_error(got_dx, dx) <= EXACT
    assert all(relative_error(got[f"0.{key}"], value) <= EXACT for key, value in parameters.items())


def test_the_mirror_of_a_random_network_comes_within_15_degrees():
    model = convert(build("paper/mlp", 10), "wm", reinit="xavier_uniform")
    assert min(site["angle_deg"] for site in alignment(model).values()) > 60
    for _ in range(800):
        feedback_phase(model)
    assert max(site["angle_deg"] for site in alignment(model).values()) < 15


def test_the_noise_is_the_same_in_every_copy_and_after_a_checkpoint():
    first = convert(nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)), "wm")
    feedback_phase(first)
    second = convert(nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)), "wm", seed=3)
    second.load_state_dict(first.state_dict())
    torch.rand(5)
    for model in (first, second):
        feedback_phase(model)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    noises = {int(layer.feedback_of_weight.noise) for layer in first}
    assert len(noises) == 2


def test_a_model_without_such_a_rule_is_refused():
    with pytest.raises(UserError, match="no rule of it has a phase"):
        feedback_phase(convert(nn.Sequential(nn.Linear(3, 2)), "pfa"))
