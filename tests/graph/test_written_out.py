"""Products that are written as a multiplication element by element and a sum, as graph attention is."""

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from test_compile import assert_compiled_is_eager
from torch import nn

from pfa_convert import convert, verify

FORMS = {
    "attention of a graph": ((1, 3, 4), lambda x, W: (x * W).sum(dim=-1)),
    "weight first": ((3, 4), lambda x, W: (W * x).sum(-1)),
    "functions": ((3, 4), lambda x, W: torch.sum(torch.mul(x, W), -1)),
    "keywords": ((3, 4), lambda x, W: torch.sum(x.mul(W), dim=(-2, -1), keepdim=True)),
    "counted from the first": ((3, 4), lambda x, W: (x * W).sum(2)),
    "axis": ((1, 3, 4), lambda x, W: (x * W).sum(axis=1)),
    "mean": ((3, 4), lambda x, W: (x * W).mean(-1)),
    "all": ((3, 4), lambda x, W: (x * W).sum()),
    "outputs": ((5, 3, 4), lambda x, W: (x[:, None] * W).sum((-2, -1))),
    "a vector": ((4,), lambda x, W: (x * W).sum(-1)),
    "a computed weight": ((4, 3), lambda x, W: (x * (W - W.mean()).t()).sum(-1)),
    "views of the terms are read": ((3, 4), lambda x, W: (p := x * W, p[0])[0].sum(-1)),
}


class WrittenOut(nn.Module):
    def __init__(self, shape, form):
        super().__init__()
        self.below, self.W, self.form = nn.Linear(5, 12), nn.Parameter(torch.randn(shape)), form

    def forward(self, x):
        return self.form(self.below(x).view(-1, 3, 4), self.W)


@pytest.mark.parametrize("name", FORMS)
def test_the_error_goes_through_the_feedback_weight(name):
    shape, form = FORMS[name]
    plain, x = WrittenOut(shape, form).double(), torch.randn(6, 5, dtype=torch.float64)
    model = convert(plain, "fa", strict=True)
    assert [(site.name, site.kind) for site in model.conversion.sites][-1] == ("W", "mul().sum()")
    y = model(x)
    assert torch.equal(y, plain(x))
    delta = torch.randn_like(y)
    y.backward(delta)

    F = feedback_of(model, "W").feedback_weight(model.W).detach()
    h = plain.below(x).detach().view(-1, 3, 4).requires_grad_()
    form(h, F).backward(delta)
    plain(x).backward(delta)
    assert relative_error(model.W.grad, plain.W.grad) <= EXACT
    assert relative_error(model.below.weight.grad, h.grad.view(-1, 12).t() @ x) <= EXACT
    assert relative_error(model.below.weight.grad, plain.below.weight.grad) > 0.1
    account = verify(model, x)
    assert account.balanced and str(next(one for one in account.entries if one.name == "W")) == "site: fa"


@pytest.mark.parametrize("rule", ["fa", "pfa"])
@pytest.mark.parametrize("name", ["attention of a graph", "outputs"])
def test_compiled_it_is_the_same(name, rule):
    model = convert(WrittenOut(*FORMS[name]).double(), rule)
    assert_compiled_is_eager(model, torch.randn(6, 5).double(), fullgraph=True)


def test_an_example_shows_it():
    class Hidden(WrittenOut):
        def forward(self, x):
            return super().forward(x) if x.sum().item() != 12345 else x

    model = Hidden(*FORMS["attention of a graph"])
    x = torch.randn(6, 5)
    assert [site.name for site in convert(model, "fa", example=((x,), {})).conversion.sites] == ["below", "W"]


SCALES = {
    "not summed over": ((3, 1), lambda x, W: (x * W).sum(-1)),
    "summed later": ((3, 4), lambda x, W: torch.relu(x * W).sum(-1)),
    "of one input": ((3, 4), lambda x, W: (x[..., :1] * W).sum(-1)),
    "a gain": ((4,), lambda x, W: (x * W).mean(1)),
}


@pytest.mark.parametrize("name", SCALES)
def test_what_sums_over_nothing_shared_is_a_scale(name):
    shape, form = SCALES[name]
    plain, x = WrittenOut(shape, form).double(), torch.randn(6, 5, dtype=torch.float64)
    model = convert(plain, "fa")
    for one in (plain, model):
        one(x).pow(2).sum().backward()
    assert name == "of one input" or [site.name for site in model.conversion.sites] == ["below"]
    below = model.below.weight.grad, plain.below.weight.grad
    assert relative_error(*below) <= EXACT and verify(model, x).balanced


def written_between(x, W):
    terms = x * W
    terms[:, 0] = 1
    return terms.sum(-1)


def written_through_a_view(x, W):
    terms = x * W
    terms.view(-1, 4)[0].zero_()
    return terms.sum(-1)


@pytest.mark.parametrize("form", [written_between, written_through_a_view])
def test_terms_that_were_written_to_are_not_multiplied_again(form):
    plain, x = WrittenOut((3, 4), form).double(), torch.randn(6, 5, dtype=torch.float64)
    model = convert(plain, "fa")
    (skipped,) = model.conversion.skipped
    assert skipped.name == "W" and "written to before it is summed" in skipped.reason
    assert torch.equal(model(x), plain(x)) and verify(model, x).balanced
    assert_compiled_is_eager(model, x)
    assert torch.equal(torch.compile(model, backend="eager")(x), plain(x))
