"""What torch.fx cannot look into: redirected, walked child by child, or reported with its reason."""

import pytest
import torch
from harness import EXACT, error_below, feedback_of, relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import convert


class LeafUser(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return leaf(x, self.first.weight, self.second.weight, self.second.bias)


def leaf(x, first, second, bias):
    x = functional.linear(x, first)
    if x.sum() > 1e9:  # data-dependent: torch.fx cannot follow
        x = x * 0
    return functional.linear(torch.relu(x), second, bias)


torch.fx.wrap("leaf")


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.own = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else functional.linear(x, self.own)


def test_weights_applied_inside_an_untraced_function_are_redirected():
    model = convert(LeafUser().double(), "fa")
    assert [site.name for site in model.conversion.sites] == ["first", "second"]
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    delta = torch.ones(3, 3).double() @ feedback_of(model.second).F0
    delta = delta * (functional.linear(x, model.first.weight) > 0)
    assert relative_error(x.grad, delta @ feedback_of(model.first).F0) <= EXACT


def test_what_cannot_be_traced_is_walked_child_by_child_and_reported():
    model = convert(nn.Sequential(DataDependent(), nn.Linear(4, 2)), "fa")
    assert [site.name for site in model.conversion.sites] == ["0.inner", "1"]
    (left,) = model.conversion.skipped
    assert left.name == "0.own" and left.weight_shape == (4, 4) and "depends on the values" in left.reason


def test_lazy_layers_are_reported():
    model = convert(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)))
    assert [left.name for left in model.conversion.skipped] == ["0"]
    assert "lazily built" in model.conversion.skipped[0].reason


def casting_leaf(x, weight):
    if x.sum() > 1e9:  # data-dependent: torch.fx cannot follow
        x = x * 0
    return functional.linear(x, weight.to(x.dtype, copy=True))


torch.fx.wrap("casting_leaf")


class CastingLeafUser(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return casting_leaf(x, self.fc.weight)


def test_a_weight_that_an_untraced_function_copies_has_its_feedback():
    model = convert(CastingLeafUser().double(), "fa")
    below = error_below(model, torch.randn(2, 4, dtype=torch.float64))
    assert relative_error(below, torch.ones(2, 3).double() @ feedback_of(model.fc).F0) <= EXACT


class ChildsWeightBehindControlFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return functional.linear(x, self.fc.weight) if x.norm() > 0 else x


def test_a_layer_whose_weight_an_untraceable_module_applies_itself_has_its_feedback():
    model = convert(ChildsWeightBehindControlFlow().double(), "fa")
    assert [site.name for site in model.conversion.sites] == ["fc"]
    below = error_below(model, torch.randn(2, 3, 4, dtype=torch.float64))
    assert relative_error(below, torch.ones(2, 3, 4).double() @ feedback_of(model.fc).F0) <= EXACT


def test_recurrent_weights_are_reported():
    report = convert(nn.LSTM(4, 3), "fa").conversion
    assert not report.sites and {left.name for left in report.skipped} == {"weight_ih_l0", "weight_hh_l0"}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_a_hook_computes_is_reported():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    report = convert(model, "fa", inplace=True).conversion
    assert [site.name for site in report.sites] == ["1"]
    assert "hook" in report.skipped[0].reason
