"""What is written in place: a constant becomes a weight by weights, and a signal by activations."""

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from test_compile import assert_compiled_is_eager
from torch import nn
from torch.nn import functional

from pfa_convert import convert, verify

INDEX = torch.tensor([2, 0, 1])


def columns(a, b, like):
    kernel = like.new_zeros(3, 4)
    kernel[:, :2] = a
    kernel[:, 2:] = b
    return kernel


def of_ones(a, b, like):
    kernel = torch.ones(3, 4, dtype=torch.float64)
    kernel[:, 1:3] += a * b
    kernel[:, 0] *= 2
    kernel += 1
    return kernel


def added_rows(a, b, like):
    kernel = torch.zeros(3, 4, dtype=torch.float64)
    kernel.index_add_(0, INDEX, torch.cat([a, b], 1))
    kernel.index_add_(0, INDEX, torch.cat([b, a], 1))
    return kernel


def added_rows_returned(a, b, like):
    return torch.ones(3, 4, dtype=torch.float64).index_add_(0, INDEX, torch.cat([a, b], 1))


def views(a, b, like):
    kernel = torch.zeros(3, 4, dtype=torch.float64)
    kernel[:, :2].copy_(a)
    kernel.t()[2:].copy_(b.t())
    return kernel


def looped(a, b, like):
    kernel = torch.zeros_like(torch.cat([a, a], 1))
    for row in range(3):
        kernel[row] = torch.cat([a[row], b[row]])
    return kernel


def in_a_copy(a, b, like):
    kernel = torch.cat([a, b], 1).clone()
    kernel.masked_fill_(torch.eye(3, 4, dtype=torch.bool), 0.5)
    kernel[0] = 0
    return kernel


def changed_afterwards(a, b, like):
    kernel = torch.cat([a, b], 1).clone()
    result = kernel * 2
    kernel[:] = 7
    kernel.fill_(3)
    return result


def scattered(a, b, like):
    return torch.zeros(3, 4, dtype=torch.float64).scatter_(1, INDEX[:, None].expand(3, 2), a).add_(b.sum())


WEIGHTS = [
    columns,
    of_ones,
    added_rows,
    added_rows_returned,
    views,
    looped,
    in_a_copy,
    changed_afterwards,
    scattered,
]


class Assembled(nn.Module):
    """Puts its weight together of two Parameters."""

    def __init__(self, assemble):
        super().__init__()
        self.assemble = assemble
        self.a, self.b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        return functional.linear(x, self.assemble(self.a, self.b, x))


@pytest.mark.parametrize("strategy", ["collapsed", "fused"])
@pytest.mark.parametrize("assemble", WEIGHTS)
def test_the_error_goes_through_the_feedback_weights_put_together_alike(assemble, strategy):
    torch.manual_seed(0)
    plain = Assembled(assemble).double()
    model = convert(plain, "pfa", strict=True, options={"strategy": strategy})
    x = torch.randn(5, 4).double().requires_grad_()
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    F = [feedback_of(model, name).feedback_weight(getattr(model, name)).detach() for name in "ab"]
    assert relative_error(x.grad, delta @ assemble(*F, x.detach())) <= EXACT
    plain(x.detach()).backward(delta)
    for name in "ab":
        assert relative_error(getattr(model, name).grad, getattr(plain, name).grad) <= EXACT
    assert verify(model, x.detach()).balanced


def assigned(h, table):
    out = torch.zeros(3, 4, dtype=torch.float64)
    out[:] = h
    return out


def assigned_in_part(h, table):
    out = h.new_zeros(3, 4)
    out[:, :2] = h[:, :2]
    return out


def assigned_by_index(h, table):
    out = torch.zeros_like(h)
    out[INDEX] = h
    return out


def row_by_row(h, table):
    out = torch.zeros(3, 4, dtype=torch.float64)
    for row in range(3):
        out[row] = h[row]
    return out


def added(h, table):
    out = torch.zeros(3, 4, dtype=torch.float64)
    out += h
    return out


def added_by_index(h, table):
    out = torch.zeros(3, 4, dtype=torch.float64)
    out.index_add_(0, INDEX, h)
    return out


def copied(h, table):
    return torch.empty(3, 4, dtype=torch.float64).copy_(h)


def copied_into_a_view(h, table):
    out = torch.zeros(3, 4, dtype=torch.float64)
    out[:, :2].copy_(h[:, :2])
    return out


def multiplied(h, table):
    out = torch.ones(3, 4, dtype=torch.float64)
    out.mul_(h)
    return out


def added_to_positions(h, table):
    out = table.clone()
    out += h
    return out


def assigned_to_positions(h, table):
    out = table.clone()
    out[:, :1] = h[:, :1]
    return out


SIGNALS = [
    assigned,
    assigned_in_part,
    assigned_by_index,
    row_by_row,
    added,
    added_by_index,
    copied,
    copied_into_a_view,
    multiplied,
    added_to_positions,
    assigned_to_positions,
]


class Collected(nn.Module):
    """Applies a weight of its own to activations that were written into another tensor."""

    def __init__(self, collect):
        super().__init__()
        self.collect = collect
        self.below = nn.Linear(4, 4)
        self.table, self.W = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.collect(self.below(x), self.table) @ self.W


@pytest.mark.parametrize("collect", SIGNALS)
def test_a_weight_is_applied_to_activations_that_were_written_in_place(collect):
    torch.manual_seed(0)
    model = convert(Collected(collect).double(), "fa")
    assert [site.weight for site in model.conversion.sites] == ["below.weight", "W"]
    x = torch.randn(3, 4).double()
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    h = model.below(x).detach().requires_grad_()
    out = collect(h * 1, model.table.detach())
    out.backward(delta @ feedback_of(model, "W").feedback_weight(model.W).t())
    assert relative_error(model.below.weight.grad, h.grad.t() @ x) <= EXACT
    assert relative_error(model.W.grad, out.detach().t() @ delta) <= EXACT
    assert verify(model, x).balanced


class Tokens(nn.Module):
    """Writes a token of its own, which it also applies as a weight, and activations into one tensor."""

    def __init__(self):
        super().__init__()
        self.below = nn.Linear(4, 4)
        self.token, self.W = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        tokens = x.new_zeros(x.shape[0] + 1, 4)
        tokens[:1] = self.token
        tokens[1:] = self.below(x)
        return (tokens @ self.W) @ self.token.t()


def test_weights_and_activations_side_by_side_are_a_signal():
    torch.manual_seed(0)
    model, x = convert(Tokens().double(), "fa", strict=True), torch.randn(3, 4).double()
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    F = {n: feedback_of(model, n).feedback_weight(getattr(model, n)).detach() for n in ("token", "W")}
    below = delta @ F["token"] @ F["W"].t()
    assert relative_error(model.below.weight.grad, below[1:].t() @ x) <= EXACT
    assert verify(model, x).balanced


@pytest.mark.parametrize("assemble", WEIGHTS)
def test_compiled_weights_that_are_put_together_have_the_same_error(assemble):
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(4, 4), Assembled(assemble)).double(), "fa")
    assert_compiled_is_eager(model, torch.randn(5, 4).double())


@pytest.mark.parametrize("collect", SIGNALS)
def test_compiled_signals_that_were_written_have_the_same_error(collect):
    torch.manual_seed(0)
    model = convert(Collected(collect).double(), "fa")
    assert_compiled_is_eager(model, torch.randn(3, 4).double())


class Untraced(nn.Module):
    """Does both, after a line that no trace gets past."""

    def __init__(self, assemble, collect):
        super().__init__()
        self.assembled, self.collected = Assembled(assemble), Collected(collect)

    def forward(self, x):
        count = int(x.abs().sum()) % 2 + 1
        kernel = self.assembled.assemble(self.assembled.a, self.assembled.b, x) * count
        signal = self.collected.collect(functional.linear(x, kernel), x.new_ones(3, 3))
        return signal @ self.collected.W


@pytest.mark.parametrize("assemble", WEIGHTS)
def test_an_example_shows_what_weights_written_in_place_are_applied(assemble):
    def collect(h, table):
        out = torch.zeros(3, 4, dtype=torch.float64)
        out[:, :3] += h * table
        return out

    torch.manual_seed(0)
    x = torch.randn(3, 4).double().requires_grad_()
    model = convert(Untraced(assemble, collect).double(), "fa", example=((x.detach(),), {}))
    sites = {site.weight for site in model.conversion.sites}
    assert sites == {"collected.below.weight", "assembled.a", "assembled.b", "collected.W"}
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    F = {
        name: feedback_of(model.get_submodule(holder), name).feedback_weight(
            model.get_parameter(f"{holder}.{name}")
        )
        for holder, name in (("assembled", "a"), ("assembled", "b"), ("collected", "W"))
    }
    count = int(x.abs().sum()) % 2 + 1
    kernel = assemble(F["a"].detach(), F["b"].detach(), x.detach()) * count
    assert relative_error(x.grad, (delta @ F["W"].t())[:, :3] @ kernel) <= EXACT
    assert verify(model, x.detach()).balanced
