"""Weights computed with random numbers, in place, of complex numbers; what has no feedback is named."""

import copy

import pytest
import torch
from harness import EXACT, relative_error
from test_forward_is_the_users import module, parameter
from test_products import gradients, inputs
from torch.nn import functional

from pfa_convert import convert
from pfa_convert.alignment import feedback_of


def dropped(self, x):
    return functional.linear(x, functional.dropout(self.W, 0.5, True)) + torch.rand(5, dtype=x.dtype)


def sampled(self, x):
    return functional.linear(x, self.W + self.spread.exp() * torch.randn_like(self.W))


def changed(self, x):
    W = self.W.clone()
    W[0] = 0
    W.mul_(2)
    return functional.linear(x, W)


RANDOM = {"dropped": (dropped, {"W": (5, 4)}), "sampled": (sampled, {"W": (5, 4), "spread": (5, 4)})}


@pytest.mark.parametrize("name", [*RANDOM, "changed"])
def test_with_F_equal_to_W_every_gradient_is_backpropagations(name):
    torch.manual_seed(0)
    forward, shapes = RANDOM.get(name, (changed, {"W": (5, 4)}))
    plain = module(forward, **{key: parameter(*shape) for key, shape in shapes.items()}).double()
    model = convert(plain, "bp", options={"strategy": "explicit"}, example=((inputs(),), {}))
    assert {site.weight for site in model.conversion.sites} == shapes.keys()
    results = []
    for one in (model, plain):
        torch.manual_seed(7)
        results.append((*gradients(one, inputs()), torch.rand(1)))
    (output, below, ours, random), (plain_output, plain_below, theirs, plain_random) = results
    assert torch.equal(output, plain_output) and torch.equal(random, plain_random)
    assert relative_error(below, plain_below) <= EXACT
    assert all(relative_error(ours[weight], theirs[weight]) <= EXACT for weight in theirs)


def test_a_change_in_place_is_made_to_the_feedback_weight_too():
    torch.manual_seed(0)
    plain = module(changed, W=parameter(5, 4)).double()
    model = convert(plain, "fa", example=((inputs(),), {}))
    F0 = model.feedback_of_W.F0.clone()
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.W.copy_(F0)
    assert relative_error(gradients(model, inputs())[1], gradients(twin, inputs())[1]) <= EXACT
    assert torch.equal(model.feedback_of_W.F0, F0)


def test_a_complex_view_of_a_weight_has_the_conjugates_of_backpropagation():
    def forward(self, x):
        return (x.to(torch.complex128) @ torch.view_as_complex(self.W)).abs()

    torch.manual_seed(0)
    plain = module(forward, W=parameter(4, 3, 2)).double()
    model = convert(plain, "bp", options={"strategy": "explicit"})
    (_, below, ours), (_, plain_below, theirs) = gradients(model, inputs()), gradients(plain, inputs())
    assert relative_error(below, plain_below) <= EXACT
    assert relative_error(ours["W"], theirs["W"]) <= EXACT


@pytest.mark.parametrize("function", [torch.linalg.multi_dot, lambda tensors: torch.chain_matmul(*tensors)])
@pytest.mark.filterwarnings("ignore:.*chain_matmul.*")
def test_chains_of_matrices(function):
    torch.manual_seed(0)
    plain = module(lambda s, x: function([x[0], s.A, s.B]), A=parameter(4, 3), B=parameter(3, 5)).double()
    model = convert(plain, "fa")
    expected = torch.ones(3, 5).double() @ feedback_of(model, "B").F0.t() @ feedback_of(model, "A").F0.t()
    x = inputs().requires_grad_()
    model(x).sum().backward()
    assert relative_error(x.grad[0], expected) <= EXACT


class OwnProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(W)
        return x @ W

    @staticmethod
    def backward(ctx, delta):
        return delta @ ctx.saved_tensors[0].t(), None


NAMED = {
    "an autograd function of the user's": (lambda s, x: OwnProduct.apply(x, s.W), (4, 3)),
    "a product in place": (lambda s, x: torch.zeros(3, 5).addmm_(x[0], s.W), (4, 5)),
    "learned keys": (
        lambda s, x: functional.scaled_dot_product_attention(x, s.W.expand(2, -1, -1), s.W.expand(2, -1, -1)),
        (5, 4),
    ),
    "prototypes": (lambda s, x: functional.cosine_similarity(x[:, :, None], s.W[None, None], dim=-1), (5, 4)),
}


@pytest.mark.parametrize("example", [False, True])
def test_a_table_that_attention_adds_is_no_weight(example):
    def biased(self, x):
        return functional.scaled_dot_product_attention(x, x, x, attn_mask=self.bias)

    plain, x = module(biased, bias=parameter(3, 3)), inputs().float()
    report = convert(plain, "fa", example=((x,), {}) if example else None).conversion
    assert not report.skipped and [(one.name, one.use) for one in report.others] == [("bias", "added")]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("example", [False, True])
def test_what_has_no_feedback_is_named_and_left_as_it_is(name, example):
    forward, shape = NAMED[name]
    torch.manual_seed(0)
    plain, x = module(forward, W=parameter(*shape)), inputs().float()
    model = convert(plain, "fa", example=((x,), {}) if example else None)
    report = model.conversion
    assert not report.sites
    assert [one.name for one in (*report.skipped, *report.others)] == ["W"]
    if name != "an autograd function of the user's":
        assert [one.name for one in report.skipped] == ["W"]
    assert torch.equal(gradients(model, x)[1], gradients(plain, x)[1])
