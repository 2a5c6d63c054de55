"""The option `aligned`: R begins at B^T W, so that there is nothing to forget."""

import copy
import math

import pytest
import torch
from harness import cases, feedback_of

from pfa_convert import alignment, convert, couple

CASES = {case.name: case for case in cases()}


@pytest.mark.parametrize("strategy", ["collapsed", "fused", "explicit"])
@pytest.mark.parametrize("name", ["linear", "conv2d groups"])
@pytest.mark.parametrize("options", [{}, {"feedback_density": 0.5}, {"law": "uniform"}])
def test_F_is_B_times_its_transpose_times_W_from_the_beginning(strategy, name, options):
    layer = copy.deepcopy(CASES[name].layer).double()
    options = {**options, "strategy": strategy, "aligned": True, "expansion": 3}
    converted = convert(layer, "pfa", options=options, seed=3)
    feedback, W = feedback_of(converted), converted.weight
    transported = feedback.pathway.transport(W, feedback.named_state())
    F = feedback.feedback_weight(W)
    assert torch.allclose(F, transported, rtol=0, atol=1e-12 * F.abs().max().item())
    if strategy != "collapsed":
        B, R = feedback.named_state().B, feedback.named_state().R
        groups = B.shape[0]
        expected = B.mT @ W.reshape(groups, W.shape[0] // groups, -1)
        mask = feedback.named_state().mask
        R = R.reshape(expected.shape)
        expected = expected if mask is None else expected * mask.reshape(expected.shape)
        assert torch.allclose(R, expected, rtol=0, atol=1e-12)


def test_orthogonal_feedback_is_aligned_at_once_and_stays_so():
    model = convert(CASES["linear"].layer, "pfa-o", options={"aligned": True})
    with torch.no_grad():
        model.weight.mul_(1.5).add_(torch.randn_like(model.weight))  # a checkpoint that is loaded later
    assert alignment(model)["weight"]["angle_deg"] < 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    couple(model, optimizer)
    for _ in range(5):
        model(torch.randn(4, 7)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert alignment(model)["weight"]["angle_deg"] < 0.1


def test_random_feedback_begins_at_its_expected_angle():
    layer = torch.nn.Linear(200, 100)
    options = {"expansion": 10}
    start = alignment(convert(layer, "pfa", options={**options, "aligned": True}))["weight"]
    assert start["angle_deg"] == pytest.approx(math.degrees(math.atan(10**-0.5)), abs=1)
    assert alignment(convert(layer, "pfa", options=options))["weight"]["angle_deg"] > 80
