"""A weight that is brought to the kind or the shape of an activation (`W.to(x)`) is a weight still."""

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from test_compile import assert_compiled_is_eager
from torch import nn
from torch.nn import functional

from pfa_convert import convert, verify

FORMS = {
    "to": lambda x, W, P: x @ W.to(x),
    "to, by name": lambda x, W, P: functional.linear(x, weight=W.to(x)).mm(P),
    "type_as": lambda x, W, P: x @ W.t().type_as(x),
    "view_as": lambda x, W, P: x @ W.view_as(x),
    "reshape_as": lambda x, W, P: x @ W.reshape_as(x),
    "expand_as": lambda x, W, P: torch.bmm(x.expand(2, 4, 4), W.expand_as(x.expand(2, 4, 4))).sum(0),
    "a constant": lambda x, W, P: x @ (W @ P.to(x)),
    "a mask": lambda x, W, P: functional.linear(x, W * P.type_as(x)),
    "the signal": lambda x, W, P: x.to(W).type_as(W) @ W,
}


class Brought(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.below, self.W, self.form = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4)), form
        self.register_buffer("P", torch.randn(4, 4))

    def forward(self, x):
        return self.form(self.below(x), self.W, self.P)


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_the_error_goes_through_its_feedback_weight(name, example):
    plain, x = Brought(FORMS[name]).double(), torch.randn(4, 4, dtype=torch.float64)
    model = convert(plain, "fa", strict=True, example=((x,), {}) if example else None)
    assert [site.name for site in model.conversion.sites] == ["below", "W"]
    y = model(x)
    assert torch.equal(y, plain(x))
    delta = torch.randn_like(y)
    y.backward(delta)
    F = feedback_of(model, "W").feedback_weight(model.W).detach()
    h = plain.below(x).detach().requires_grad_()
    FORMS[name](h, F, plain.P).backward(delta)
    plain(x).backward(delta)
    assert relative_error(model.W.grad, plain.W.grad) <= EXACT
    assert relative_error(model.below.weight.grad, h.grad.t() @ x) <= EXACT
    assert verify(model, x).balanced


@pytest.mark.parametrize("name", ["to", "expand_as", "a mask"])
def test_compiled_it_is_the_same(name):
    assert_compiled_is_eager(convert(Brought(FORMS[name]).double(), "fa"), torch.randn(4, 4).double())
