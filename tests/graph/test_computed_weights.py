"""Weights that a forward computes from a learned one before it applies them."""

import pytest
import torch
from harness import EXACT, error_below, feedback_of, relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import convert


class Standardised(nn.Conv2d):
    def forward(self, x):
        W = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return functional.conv2d(x, W / W.std(dim=(1, 2, 3), keepdim=True), self.bias, padding=1)


def test_a_computed_weight_sends_the_error_through_the_same_function_of_the_feedback_weight():
    plain = Standardised(3, 4, 3).double()
    model = convert(nn.Sequential(plain), "pfa", options={"expansion": 3, "strategy": "fused"})
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    delta = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    model(x).backward(delta)
    feedback = feedback_of(model[0])
    raw = torch.einsum("om,mi->oi", feedback.B[0], feedback.R.flatten(1)).view_as(plain.weight).detach()
    twin = Standardised(3, 4, 3).double()
    twin.load_state_dict({"weight": raw, "bias": plain.bias})
    through = x.detach().clone().requires_grad_()
    twin(through).backward(delta)
    assert relative_error(x.grad, through.grad) <= EXACT
    # The raw weight learns as ever, and R from the raw weight's gradient: dL/dR = B^T dL/dV.
    plain(x.detach()).backward(delta)
    assert relative_error(model[0].weight.grad, plain.weight.grad) <= EXACT
    expected = feedback.B[0].t() @ plain.weight.grad.flatten(1)
    assert relative_error(feedback.R.grad.flatten(1), expected) <= EXACT


class ChunkedProjection(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj = nn.Parameter(torch.randn(9, 4))

    def forward(self, x):
        q, k, v = self.in_proj.chunk(3)
        return functional.linear(x, q) * 2 + functional.linear(x.relu(), k) + functional.linear(x.tanh(), v)


class TwiceStandardised(nn.Conv2d):
    def forward(self, x):
        W = self.weight - self.weight.mean()
        return functional.conv2d(functional.conv2d(x, W), W)


@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_a_weight_that_is_applied_in_parts_sends_the_error_through_the_same_parts(rule):
    model = convert(ChunkedProjection().double(), rule)
    x = torch.randn(5, 4, dtype=torch.float64)
    F = feedback_of(model, "in_proj").feedback_weight(model.in_proj)
    q, k, v = (torch.ones(5, 3).double() @ part for part in F.chunk(3))
    expected = 2 * q + k * (x > 0) + v * (1 - x.tanh().square())
    assert relative_error(error_below(model, x), expected) <= EXACT


@pytest.mark.parametrize(
    ("make", "shape", "name"),
    [
        (ChunkedProjection, (5, 4), "in_proj"),
        (lambda: TwiceStandardised(3, 3, 3, bias=False), (2, 3, 8, 8), "weight"),
    ],
    ids=["chunked", "standardised, applied twice"],
)
def test_a_computed_weight_that_is_used_again_teaches_R_once(make, shape, name):
    model = convert(nn.Sequential(make()).double(), "pfa", options={"expansion": 2, "strategy": "fused"})
    model(torch.randn(shape, dtype=torch.float64)).square().sum().backward()
    feedback = feedback_of(model[0], name)
    expected = feedback.B[0].t() @ model[0].get_parameter(name).grad.flatten(1)
    assert relative_error(feedback.R.grad.flatten(1), expected) <= EXACT


class CosineReadout(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 7, bias=False)

    def forward(self, x):
        return functional.linear(x, functional.normalize(self.head.weight))


def test_a_normalised_weight_of_a_child():
    model = convert(CosineReadout().double(), "fa")
    expected = torch.ones(3, 7).double() @ functional.normalize(feedback_of(model.head).F0)
    assert relative_error(error_below(model, torch.randn(3, 4).double()), expected) <= EXACT


def test_a_normalised_weight_is_a_site_of_the_function_that_applies_it():
    (site,) = convert(CosineReadout(), "fa").conversion.sites
    assert site.kind == "linear()"
