"""Modules that are alike share one graph; those that are not, do not."""

import torch
from harness import EXACT, relative_error
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from pfa_convert import convert
from pfa_convert.graph.likeness import Likeness


class Scaled(nn.Module):
    def __init__(self, scale, size=4):
        super().__init__()
        self.scale = scale
        self.mixing = nn.Parameter(torch.randn(size, size))

    def forward(self, x):
        if self.scale != 1:
            x = x * self.scale
        return functional.linear(x, self.mixing)


def test_alike_are_modules_that_differ_only_in_the_values_of_their_tensors():
    model = nn.Sequential(Scaled(2), Scaled(2), Scaled(3), Scaled(2, size=5))
    number = Likeness(model)
    assert number(model[0]) == number(model[1])
    assert len({number(block) for block in model}) == 3


def test_an_object_is_alike_only_to_itself():
    model = nn.Sequential(Scaled(object()), Scaled(object()))
    number = Likeness(model)
    assert number(model[0]) != number(model[1])


def test_a_tied_weight_is_alike_to_none():
    model = nn.Sequential(Scaled(2), Scaled(2), Scaled(2))
    model[1].mixing = model[0].mixing
    number = Likeness(model)
    assert number(model[0]) == number(model[1]) != number(model[2])


def test_each_of_several_alike_modules_has_a_feedback_weight_of_its_own():
    model = convert(nn.Sequential(Scaled(2), Scaled(2), Scaled(3)).double(), "fa")
    assert [site.name for site in model.conversion.sites] == ["0.mixing", "1.mixing", "2.mixing"]
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    F0, F1, F2 = (block.feedback_of_mixing.F0 for block in model)
    assert relative_error(x.grad, 2 * 2 * 3 * torch.ones(3, 4).double() @ F2 @ F1 @ F0) <= EXACT


class TableBehindControlFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x + self.table[: int(x.abs().sum()) % 3].sum(0))


def test_a_table_that_no_code_could_apply_as_a_weight_is_not_reported():
    report = convert(TableBehindControlFlow(), "fa").conversion
    assert [site.name for site in report.sites] == ["inner"] and not report.skipped


def mix(x, weight):
    return functional.linear(x, weight)


class MixedByAHelper(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return mix(x, self.mixing) if float(x.sum()) > 0 else x


def test_a_weight_that_a_function_applies_behind_control_flow_is_reported():
    report = convert(MixedByAHelper(), "fa").conversion
    assert [left.name for left in report.skipped] == ["mixing"]


class ChildsComputedWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = weight_norm(nn.Linear(4, 4))

    def forward(self, x):
        return functional.linear(x, self.inner.weight)


def test_a_weight_that_a_childs_parametrization_computes_sends_its_error_through_the_same_computation():
    plain = ChildsComputedWeight().double()
    model = convert(plain, "fa")
    (site,) = model.conversion.sites
    assert (site.name, site.kind) == ("inner", "linear()")
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(model(x), plain(x))
    model(x).sum().backward()
    F0, norms = model.inner.feedback_of_weight.F0, model.inner.parametrizations.weight.original0
    F = norms * F0 / F0.norm(dim=1, keepdim=True)
    assert relative_error(x.grad, torch.ones(3, 4).double() @ F) <= EXACT
