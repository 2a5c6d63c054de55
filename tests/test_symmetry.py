"""How symmetric pathways are, against NumPy and the literal pathways."""

import math

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

from pfa_convert import convert, couple, inspect


def trained(rule, **options):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)).double()
    model = convert(plain, rule, options=options)
    x, targets = torch.randn(8, 4, 6, 6).double(), torch.arange(8) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1)
    if rule != "fa":
        couple(model, optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), targets).backward()
        optimizer.step()
    return model


def largest_correlations(backward, forward):
    """The mean over the rows of `backward` of the largest |Pearson| with a row of `forward`, by NumPy."""
    found = [max(abs(numpy.corrcoef(row, other)[0, 1]) for other in forward) for row in backward]
    return sum(found) / len(found)


@pytest.mark.parametrize("rule", ["kp", "fa"])
def test_one_step_rules_have_a_backward_connection_beside_each_forward_one(rule):
    model = trained(rule)
    for name, groups in (("0", 2), ("3", 1)):
        site, layer = inspect(model)[name], model[int(name)]
        W = layer.weight.detach()
        F = layer.feedback_of_weight.feedback_weight(W)
        assert site.reciprocal == 1
        assert site.correlation == pytest.approx(
            numpy.corrcoef(F.flatten().numpy(), W.flatten().numpy())[0, 1]
        )
        blocks = zip(F.flatten(1).chunk(groups), W.flatten(1).chunk(groups), strict=True)
        expected = [largest_correlations(f.numpy(), w.numpy()) for f, w in blocks]
        assert site.closest == pytest.approx(sum(expected) / groups)


def test_sparse_feedback_leaves_some_connections_without_a_partner():
    feedback = convert(nn.Sequential(nn.Linear(50, 40)), "fa", options={"feedback_density": 0.3})
    mask = feedback[0].feedback_of_weight.feedback_weight(feedback[0].weight) != 0
    assert inspect(feedback)["0"].reciprocal == mask.double().mean().item() < 0.4


def test_the_literal_product_pathway_has_no_reciprocal_connection_and_no_copy_of_a_neuron():
    model = trained("pfa", strategy="explicit", expansion=4)
    for name, groups in (("0", 2), ("3", 1)):
        site, layer = inspect(model)[name], model[int(name)]
        assert site.reciprocal == 0
        R, W = layer.feedback_of_weight.R.detach().flatten(1), layer.weight.detach().flatten(1)
        blocks = zip(R.chunk(groups), W.chunk(groups), strict=True)
        expected = [largest_correlations(r.numpy(), w.numpy()) for r, w in blocks]
        assert site.closest == pytest.approx(sum(expected) / groups)
        among = [
            largest_correlations(w[i : i + 1], numpy.delete(w, i, axis=0))
            for w in (block.numpy() for block in W.chunk(groups))
            for i in range(len(w))
        ]
        assert site.closest_forward == pytest.approx(sum(among) / len(among))


def test_the_collapsed_product_rule_keeps_no_middle_neurons_to_look_at():
    for rule in ("pfa", "pfa-o"):
        site = inspect(trained(rule))["3"]
        assert site.reciprocal == 0 and math.isnan(site.closest) and site.correlation == site.correlation


def test_backpropagation_is_wholly_symmetric_and_dfa_stands_beside_no_weight():
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    site = inspect(convert(plain, "bp"))["0"]
    assert (site.correlation, site.reciprocal, site.closest) == (1, 1, 1)
    assert math.isnan(inspect(convert(plain, "dfa"))["0"].correlation)
