"""Stacks of matrices of which some are looked up: the experts of a mixture, the heads of several tasks."""

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from test_forward_is_the_users import module, parameter
from torch import nn
from torch.nn import functional

from pfa_convert import convert, verify

E, N_OUT, N_IN = 5, 3, 4
STACK = (E, N_OUT, N_IN)


def two(index):
    return torch.stack([index, (index + 1) % E], 1)


LOOKED_UP = {
    "einsum": (lambda W, x, i: torch.einsum("boi,bi->bo", W[i], x), STACK),
    "einsum of several": (
        lambda W, x, i: torch.einsum("bkoi,bi->bko", W[two(i)], x),
        STACK,
    ),
    "bmm": (lambda W, x, i: torch.bmm(W[i], x[:, :, None]), STACK),
    "matmul of several": (lambda W, x, i: W[two(i)] @ x[:, None, :, None], STACK),
    "transposed": (lambda W, x, i: x[:, None] @ W[i].mT, STACK),
    "stored the other way": (lambda W, x, i: x[:, None] @ W[i], (E, N_IN, N_OUT)),
    "index_select": (lambda W, x, i: torch.bmm(W.index_select(0, i), x[:, :, None]), STACK),
    "by keywords": (lambda W, x, i: torch.index_select(input=W, dim=0, index=i) @ x[:, :, None], STACK),
    "summed over the chosen": (lambda W, x, i: torch.einsum("koi,ki->o", W.index_select(0, i), x), STACK),
    "gather": (
        lambda W, x, i: torch.bmm(W.gather(0, i[:, None, None].expand(-1, N_OUT, N_IN)), x[:, :, None]),
        STACK,
    ),
    "scaled": (lambda W, x, i: torch.einsum("boi,bi->bo", 2 * W[i], x), STACK),
    "with slices": (lambda W, x, i: torch.bmm(W[i, :, :], x[:, :, None]), STACK),
    "with an ellipsis": (lambda W, x, i: torch.bmm(W[i, ...], x[:, :, None]), STACK),
    "in the middle": (lambda W, x, i: torch.einsum("obi,bi->bo", W[:, i], x), (N_OUT, E, N_IN)),
    "those that a mask leaves": (lambda W, x, i: (W[torch.arange(E) != i[0]] @ x.t()).sum(0).t(), STACK),
    "one expert": (lambda W, x, i: x @ W[i[0]].t(), STACK),
    "one expert, linear": (lambda W, x, i: functional.linear(x, W[i[0]]), STACK),
    "one by its number": (lambda W, x, i: x @ W[2].T, STACK),
    "linear by its number": (lambda W, x, i: functional.linear(x, W[2]), STACK),
    "of two ranks": (lambda W, x, i: torch.einsum("broi,bi->bo", W[i], x), (E, 2, N_OUT, N_IN)),
}
MATRICES = {"in the middle": (1, (2,)), "stored the other way": (0, (1,)), "of two ranks": (0, (1, 3))}
"""Which dimension is looked up, and which are summed over; else the first and the last."""


class Stack(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.apply_stack, shape = LOOKED_UP[name]
        self.below = nn.Linear(4, N_IN)
        self.W = parameter(*shape)

    def forward(self, x, index):
        return self.apply_stack(self.W, self.below(x), index)


def given():
    torch.manual_seed(1)
    return torch.randn(6, 4, dtype=torch.float64), torch.tensor([3, 0, 4, 4, 1, 3])


@pytest.mark.parametrize("rule", ["fa", "kp", "usf", "pfa", "pfa-o"])
@pytest.mark.parametrize("name", LOOKED_UP)
def test_the_error_goes_through_the_matrices_looked_up_in_the_feedback_weight(name, rule):
    torch.manual_seed(0)
    model, (x, index) = convert(Stack(name).double(), rule), given()
    y = model(x, index)
    delta = torch.randn_like(y)
    y.backward(delta)
    F = feedback_of(model, "W").feedback_weight(model.W).detach()
    hidden = model.below(x).detach().requires_grad_()
    W = model.W.detach().clone().requires_grad_()
    (grad_W,) = torch.autograd.grad(model.apply_stack(W, hidden, index), W, delta)
    (error,) = torch.autograd.grad(model.apply_stack(F, hidden, index), hidden, delta)
    assert relative_error(model.W.grad, grad_W) <= EXACT
    assert relative_error(model.below.weight.grad, error.t() @ x) <= EXACT
    assert verify(model, x, index).balanced


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", LOOKED_UP)
def test_each_matrix_of_a_stack_has_a_feedback_weight_of_its_own(name, example):
    model = convert(Stack(name).double(), "pfa", example=(given(), {}) if example else None)
    layout = feedback_of(model, "W").pathway.layout
    looked_up, summed = MATRICES.get(name, (0, (len(model.W.shape) - 1,)))
    assert (layout.batch, layout.inputs) == ((looked_up,), summed)


class Mixture(nn.Module):
    """Two layers of experts behind a router that chooses two for each token, as in a transformer's block."""

    def __init__(self, width=8, hidden=12, experts=4):
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up, self.down = parameter(experts, hidden, width), parameter(experts, width, hidden)

    def forward(self, x):
        scores, chosen = self.router(x).softmax(-1).topk(2)
        hidden = torch.einsum("nkhw,nw->nkh", self.up[chosen], x).relu()
        return torch.einsum("nkwh,nkh,nk->nw", self.down[chosen], hidden, scores)


def grad_of_down(shape, chosen, scores, hidden, delta):
    """Return the gradient of the experts' second matrices, token by token."""
    grad = torch.zeros(shape, dtype=torch.float64)
    for token, experts in enumerate(chosen):
        for k, expert in enumerate(experts):
            grad[expert] += scores[token, k] * torch.outer(delta[token], hidden[token, k])
    return grad


@torch.no_grad()
def routed(block, x):
    """Return the experts that a block chooses for `x`, their scores and their hidden units."""
    scores, chosen = block.router(x).softmax(-1).topk(2)
    return chosen, scores, torch.einsum("nkhw,nw->nkh", block.up[chosen], x).relu()


@pytest.mark.parametrize("strategy", ["collapsed", "fused", "explicit"])
def test_a_mixture_of_experts_learns_by_the_formulas(strategy):
    torch.manual_seed(2)
    options = {"strategy": strategy, "expansion": 2}
    model = convert(nn.Sequential(Mixture(), Mixture()).double(), "pfa", options=options)
    first, second = model
    x, delta = torch.randn(2, 7, 8, dtype=torch.float64)
    model(x).backward(delta)

    middle = first(x).detach()
    chosen, scores, hidden = routed(second, middle)
    grad_W = grad_of_down(second.down.shape, chosen, scores, hidden, delta)
    assert relative_error(second.down.grad, grad_W) <= EXACT

    # Below the second block: along each chosen expert, and along the router's scores.
    F = {
        name: feedback_of(second, name).feedback_weight(second.get_parameter(name)) for name in ("up", "down")
    }
    F_router = second.router.feedback_of_weight.feedback_weight(second.router.weight)
    back = torch.einsum("nkwh,nw->nkh", F["down"][chosen], delta)
    to_scores = (back * hidden).sum(-1)
    logits = second.router(middle).detach().requires_grad_()
    (to_logits,) = torch.autograd.grad(logits.softmax(-1).topk(2).values, logits, to_scores)
    along_experts = torch.einsum("nkhw,nkh->nw", F["up"][chosen], back * scores[..., None] * (hidden > 0))
    below = (along_experts + to_logits @ F_router).detach()

    grad_W_below = grad_of_down(first.down.shape, *routed(first, x), below)
    assert relative_error(first.down.grad, grad_W_below) <= EXACT
    if strategy == "fused":
        feedback = feedback_of(second, "down")
        assert relative_error(feedback.R.grad, feedback.B.mT @ grad_W) <= EXACT


class OfLayers(nn.Module):
    """Experts that are layers of their own, put together before they are looked up."""

    def __init__(self):
        super().__init__()
        self.below = nn.Linear(4, N_IN)
        self.experts = nn.ModuleList(nn.Linear(N_IN, N_OUT, bias=False) for _ in range(E))

    def forward(self, x, index):
        W = torch.stack([expert.weight for expert in self.experts])
        return torch.einsum("boi,bi->bo", W[index], self.below(x))


@pytest.mark.parametrize("rule", ["fa", "pfa"])
def test_experts_that_are_layers_each_send_the_error_through_their_own_feedback(rule):
    torch.manual_seed(0)
    model, (x, index) = convert(OfLayers().double(), rule), given()
    delta = torch.randn(6, N_OUT, dtype=torch.float64)
    model(x, index).backward(delta)
    F = [feedback_of(layer).feedback_weight(layer.weight).detach() for layer in model.experts]
    error = torch.stack([row @ F[expert] for row, expert in zip(delta, index, strict=True)])
    assert relative_error(model.below.weight.grad, error.t() @ x) <= EXACT
    hidden = model.below(x).detach()
    chosen = index == 4
    assert relative_error(model.experts[4].weight.grad, delta[chosen].t() @ hidden[chosen]) <= EXACT
    assert {site.kind for site in model.conversion.sites} == {"Linear", "einsum()"}
    assert verify(model, x, index).balanced


def rows_of_a_table(s, x):
    return s.layer(x + s.table[x.argmax(1)])


def prompts(s, x):
    return s.layer(torch.cat([s.table[x.argmax(1)].flatten(1), x], 1))


@pytest.mark.parametrize(
    ("forward", "shape", "width"), [(rows_of_a_table, (4, 4), 4), (prompts, (4, 2, 4), 12)]
)
def test_what_is_looked_up_and_added_or_put_beside_is_a_signal(forward, shape, width):
    model = convert(module(forward, table=parameter(*shape), layer=nn.Linear(width, 4)), "fa")
    assert [site.weight for site in model.conversion.sites] == ["layer.weight"]
    account = verify(model, torch.randn(3, 4))
    assert account.balanced and {entry.status for entry in account.having("no linear map")} == {
        "no linear map"
    }


def test_matrices_that_are_looked_up_without_feedback_are_unaccounted():
    plain = module(lambda s, x: torch.einsum("boi,bi->bo", s.W[x.argmax(1)], x), W=parameter(4, 3, 4))
    assert [entry.name for entry in verify(plain, torch.randn(3, 4)).unaccounted] == ["W"]
