"""The report, `alignment` and `inspect` say what the model is now, not what it once was."""

import copy
import math

import pytest
import torch
from harness import feedback_of
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import pfa_convert
from pfa_convert import UserError, alignment, convert, couple, revert


def small():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def rules(model):
    return {site.name: site.rule for site in model.conversion.sites}


def left(model):
    return {one.name: one.reason for one in model.conversion.skipped}


def test_after_coupling_the_report_says_collapsed_and_counts_the_state_that_is_left():
    model = convert(small(), "pfa")
    couple(model, torch.optim.SGD(model.parameters(), lr=0.1))
    report = model.conversion
    assert {site.strategy for site in report.sites} == {"collapsed"}
    held = sum(t.numel() for m in (model[0], model[2], model[4]) for t in feedback_of(m).state())
    assert report.feedback_elements == held


def test_a_replaced_layer_is_no_site_and_has_no_angle():
    model = convert(small(), "fa")
    model[2] = nn.Linear(5, 4)
    assert rules(model) == {"0": "fa", "4": "fa"}
    assert "replaced after the conversion" in left(model)["2"]
    assert "replaced after the conversion" in str(model.conversion)
    assert alignment(model).keys() == pfa_convert.inspect(model).keys() == {"0", "4"}
    assert all(value["angle_deg"] > 1 for value in alignment(model).values())


def test_a_layer_replaced_by_something_else_is_gone():
    model = convert(small(), "fa")
    model[2] = nn.Identity()
    assert rules(model) == {"0": "fa", "4": "fa"} and not left(model)


def test_an_added_layer_is_named():
    model = convert(small(), "fa")
    model.append(nn.Linear(3, 2))
    model.register_parameter("table", nn.Parameter(torch.zeros(2, 2)))
    assert left(model) == {"5.weight": "added after the conversion: it has no feedback weight"}
    assert ("table", "added after the conversion") in [(o.name, o.use) for o in model.conversion.others]


def test_a_replaced_layer_of_backpropagation_is_one_of_backpropagation():
    model = convert(small(), "fa", overrides=[{"match": "2", "rule": "bp"}])
    model[2] = nn.Linear(7, 4)
    assert rules(model)["2"] == "bp" and model.conversion.sites[1].weight_shape == (4, 7)
    assert alignment(model)["2"] == {"angle_deg": 0.0, "norm_ratio": 1.0}


def test_a_frozen_weight_is_said_to_be_frozen():
    model = convert(small(), "fa")
    model[0].requires_grad_(False)
    assert [site.frozen for site in model.conversion.sites] == [True, False, False]
    assert str(model.conversion).splitlines()[0].endswith("fa (frozen)")


def test_a_weight_that_is_parametrized_since_is_compared_as_its_raw_one():
    model = convert(small(), "fa")
    weight_norm(model[0])
    V, F = model[0].parametrizations.weight.original1.detach(), feedback_of(model[0]).F0
    expected = math.degrees(torch.acos(torch.nn.functional.cosine_similarity(V.flatten(), F.flatten(), 0)))
    assert alignment(model)["0"]["angle_deg"] == pytest.approx(expected, abs=1e-3)
    assert not left(model) and len(rules(model)) == 3


def test_a_weight_that_a_hook_computes_since_is_named():
    model = convert(small(), "fa")
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[0])
    model(torch.randn(2, 6)).sum().backward()
    assert "computed by a hook" in left(model)["0"] and "0" not in alignment(model)


def test_the_report_of_an_unchanged_model_is_what_was_decided():
    model = convert(small(), "pfa")
    assert model.conversion == copy.deepcopy(model).conversion == model.conversion
    assert not hasattr(revert(model), "conversion")


@pytest.mark.parametrize("rule", ["fa", "bp"])
def test_a_model_with_a_converted_part_is_refused(rule):
    part = convert(nn.Sequential(nn.Linear(4, 4)), "fa")
    with pytest.raises(UserError, match=r"'1\.0' is converted already"):
        convert(nn.Sequential(nn.Linear(3, 4), nn.Sequential(part)), rule)


def test_two_models_that_share_a_part_cannot_both_be_converted_in_place():
    backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    first, second = nn.Sequential(backbone, nn.Linear(4, 2)), nn.Sequential(backbone, nn.Linear(4, 3))
    convert(first, "fa", inplace=True)
    with pytest.raises(UserError, match=r"'0\.0' is converted already, by itself or as a part of another"):
        convert(second, "bp", inplace=True)
    revert(first, inplace=True)
    assert rules(convert(second, "fa")) == {"0.0": "fa", "1": "fa"}


def test_a_model_with_an_attribute_of_the_reports_name_is_refused():
    model = small()
    model.conversion = "mine"
    with pytest.raises(UserError, match="attribute 'conversion' of its own"):
        convert(model)
