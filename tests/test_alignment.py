"""Angles between feedback and forward weights, and between a rule's weight gradients and the true ones."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pfa_convert import UserError, alignment, convert, couple, gradient_angles, revert
from pfa_convert.alignment import angle
from pfa_convert.models import build


def degrees_between(a, b):
    cosine = (a * b).sum() / a.norm() / b.norm()
    return math.degrees(math.acos(cosine.detach().clamp(-1, 1)))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 4, bias=False)
    ).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (9,), generator=generator)


@pytest.mark.parametrize("degrees", [0, 1e-6, 1, 30, 90, 135, 179.999999, 180])
def test_the_angle_keeps_its_precision_at_both_ends(degrees):
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=torch.float64)
    assert angle(a * 3, b * 0.2) == pytest.approx(degrees, abs=1e-9)


def test_nothing_has_no_angle():
    assert math.isnan(angle(torch.zeros(3), torch.ones(3)))


@pytest.mark.parametrize("rule", ["fa", "usf", "frsf", "kp", "pfa", "pfa-o"])
def test_alignment_is_the_angle_and_the_ratio_of_F_and_W(rule):
    model = convert(mlp(), rule, overrides=[{"match": "4", "rule": "bp"}])
    measured = alignment(model)
    for name in ("0", "2"):
        layer = model.get_submodule(name)
        F = layer.feedback_of_weight.feedback_weight(layer.weight)
        assert measured[name] == {
            "angle_deg": pytest.approx(degrees_between(F, layer.weight), abs=1e-6),
            "norm_ratio": pytest.approx((F.norm() / layer.weight.norm()).item()),
        }
    assert measured["4"] == {"angle_deg": 0.0, "norm_ratio": 1.0}


def test_alignment_does_not_disturb_random_numbers():
    model = convert(mlp(), "brsf")
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    alignment(model)
    assert torch.equal(torch.randn(4), expected)


def test_gradient_angles_of_feedback_alignment_by_hand():
    model = convert(mlp(), "fa")
    x, targets = batch()
    W0, W2, W4 = (model[index].weight.detach() for index in (0, 2, 4))
    F2, F4 = (model[index].feedback_of_weight.F0 for index in (2, 4))
    h1 = torch.tanh(x @ W0.t() + model[0].bias)
    h2 = torch.tanh(h1 @ W2.t() + model[2].bias)
    delta = (torch.softmax(h2 @ W4.t(), 1) - functional.one_hot(targets, 4)) / len(x)

    def weight_gradients(down2, down4):
        delta2 = delta @ down4 * (1 - h2**2)
        delta1 = delta2 @ down2 * (1 - h1**2)
        return delta1.t() @ x, delta2.t() @ h1, delta.t() @ h2

    expected = [
        degrees_between(ours, true)
        for ours, true in zip(weight_gradients(F2, F4), weight_gradients(W2, W4), strict=True)
    ]
    measured = gradient_angles(model, functional.cross_entropy, x, targets)
    assert list(measured.values()) == pytest.approx(expected, abs=1e-5)
    assert measured["4"] == pytest.approx(0, abs=1e-6) and min(measured["0"], measured["2"]) > 30


def test_backpropagation_has_no_gradient_angle_and_nothing_is_left_behind():
    torch.manual_seed(0)
    model = convert(build("paper/resnet20"), "bp")
    x, targets = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    angles = gradient_angles(model, functional.cross_entropy, x, targets)
    assert list(angles) == [site.name for site in model.conversion.sites]
    assert set(angles.values()) == {0.0}
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())
    assert all(p.grad is None for p in model.parameters())


def test_both_gradients_see_the_same_dropout_and_batch_statistics():
    torch.manual_seed(0)
    model = convert(
        nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Linear(20, 4)),
        "kp",
        options={"strategy": "fused"},
    )
    with torch.no_grad():
        model[3].feedback_of_weight.F.copy_(model[3].weight)
    x, targets = torch.randn(9, 6), torch.randint(4, (9,))
    angles = gradient_angles(model, functional.cross_entropy, x, targets)
    assert angles == {"0": pytest.approx(0, abs=1e-3), "3": pytest.approx(0, abs=1e-3)}


def test_gradients_that_were_there_are_kept():
    model = convert(mlp(), "fa")
    x, targets = batch()
    model(x).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    with torch.no_grad():
        gradient_angles(model, functional.cross_entropy, x, targets)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_gradient_angles_with_a_frozen_layer():
    model = convert(mlp(), "fa")
    model[2].weight.requires_grad_(False)
    angles = gradient_angles(model, functional.cross_entropy, *batch())
    assert angles["0"] > 30 and math.isnan(angles.get("2", math.nan))


def test_alignment_follows_a_learning_feedback_weight():
    model = convert(mlp(), "kp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.05)
    couple(model, optimizer)
    x, targets = batch()
    first = alignment(model)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), targets).backward()
        optimizer.step()
    last = alignment(model)
    assert all(last[site]["angle_deg"] < first[site]["angle_deg"] / 1.5 for site in first)


def test_a_plain_model_has_no_alignment():
    for model in (mlp(), revert(convert(mlp()))):
        with pytest.raises(UserError, match="not a converted one"):
            alignment(model)
        with pytest.raises(UserError, match="not a converted one"):
            gradient_angles(model, functional.cross_entropy, *batch())
