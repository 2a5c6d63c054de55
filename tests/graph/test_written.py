"""What is written in place: activations into a constant, which makes it a signal, and weights."""

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from test_compile import assert_compiled_is_eager
from torch import nn
from torch.nn import functional

from pfa_convert import UserError, convert, verify

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


def scattered(a, b, like):
    return torch.zeros(3, 4, dtype=torch.float64).scatter_(1, INDEX[:, None].expand(3, 2), a).add_(b.sum())


ASSEMBLED = [columns, of_ones, added_rows, added_rows_returned, views, looped, scattered]


class Assembled(nn.Module):
    """Puts its weight together of two Parameters."""

    def __init__(self, assemble):
        super().__init__()
        self.assemble = assemble
        self.a, self.b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        return functional.linear(x, self.assemble(self.a, self.b, x))


@pytest.mark.parametrize("assemble", ASSEMBLED)
def test_weights_that_are_written_into_what_is_applied_are_skipped(assemble):
    """They keep backpropagation's error: no run tells a constant of unknown origin from a signal."""
    torch.manual_seed(0)
    plain = Assembled(assemble).double()
    with pytest.raises(UserError, match=r"written into another tensor in place|no forward that could be"):
        convert(plain, "fa", strict=True)
    model, x = convert(plain, "fa"), torch.randn(5, 4).double().requires_grad_()
    assert model.conversion.sites == ()
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    kernel = assemble(model.a.detach(), model.b.detach(), x.detach())
    assert relative_error(x.grad, delta @ kernel) <= EXACT
    account = verify(model, x.detach())
    assert account.balanced == all("in place" in one.reason for one in model.conversion.skipped)
    if not account.balanced:
        assert {entry.name for entry in account.unaccounted} <= {"a", "b"}


def in_a_copy(W):
    K = W.clone()
    K.masked_fill_(torch.eye(3, 4, dtype=torch.bool), 0.5)
    K[0] = 0
    return K


def changed_afterwards(W):
    K = W * 1
    result = K * 2
    K[:] = 7
    K.fill_(3)
    return result


def activated(W):
    return functional.relu(W.clone(), inplace=True)


def clamped(W):
    K = W * 1
    torch.clamp_(K, -0.5, 0.5)
    return K


def squared(W):
    K = W * 1
    K **= 2
    return K


def of_a_view(W):
    K = W * 3
    K.t()[1:].mul_(2)
    return K


def of_a_dense_copy(W):
    K = W.contiguous()
    K *= 0.5
    return K


CHANGED = [in_a_copy, changed_afterwards, activated, clamped, squared, of_a_view, of_a_dense_copy]


class Changing(nn.Module):
    """Changes what it has computed from its weight in place, before it applies that."""

    def __init__(self, change):
        super().__init__()
        self.change = change
        self.below, self.W = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 3).t())

    def forward(self, x):
        return functional.linear(self.below(x), self.change(self.W))


@pytest.mark.parametrize("strategy", ["collapsed", "fused"])
@pytest.mark.parametrize("change", CHANGED)
def test_a_copy_of_a_weight_that_is_changed_has_a_feedback_weight_that_is_changed_alike(change, strategy):
    torch.manual_seed(0)
    model = convert(Changing(change).double(), "pfa", strict=True, options={"strategy": strategy})
    feedback = feedback_of(model, "W")
    F = feedback.feedback_weight(model.W).detach().clone()
    x = torch.randn(5, 4).double()
    for _ in range(2):  # and F itself stays what it is
        model.zero_grad()
        y = model(x)
        delta = torch.randn_like(y)
        y.backward(delta)
        assert relative_error(model.below.weight.grad, (delta @ change(F.clone())).t() @ x) <= EXACT
        assert torch.equal(feedback.feedback_weight(model.W), F)
    assert verify(model, x).balanced


@pytest.mark.parametrize("change", CHANGED)
def test_compiled_it_is_changed_alike(change):
    torch.manual_seed(0)
    assert_compiled_is_eager(convert(Changing(change).double(), "fa"), torch.randn(5, 4).double())


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


def beside(h, table):
    out = h.new_zeros(3, 4)
    out[:1] = table[:1]
    out[1:] = h[1:]
    return out


def beside_in_views(h, table):
    out = h.new_zeros(3, 4)
    out[0].copy_(table[0])
    out[1:].add_(h[1:])
    return out


def on_top(h, table):
    out = h.new_zeros(3, 4)
    out[:1] = table[:1]
    out += h
    return out


def into_a_part(h, table):
    out = table.clone()
    out[1:] += h[1:]
    return out


def scaling_a_part(h, table):
    out = table.clone()
    out[1:] *= h[1:]
    return out


def between(h, table):
    return table.clone().lerp_(h, 0.5)


BESIDE = [beside, beside_in_views, on_top, into_a_part, scaling_a_part, between]


class Tied(nn.Module):
    """Puts rows of a table and activations into one tensor, and applies the table as a weight too."""

    def __init__(self, collect):
        super().__init__()
        self.collected = Collected(collect)

    def forward(self, x):
        return self.collected(x) @ self.collected.table.t()


@pytest.mark.parametrize("collect", BESIDE)
def test_weights_and_activations_side_by_side_are_a_signal(collect):
    torch.manual_seed(0)
    model, x = convert(Tied(collect).double(), "fa", strict=True), torch.randn(3, 4).double()
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    inner = model.collected
    F = {n: feedback_of(inner, n).feedback_weight(getattr(inner, n)).detach() for n in ("table", "W")}
    h = inner.below(x).detach().requires_grad_()
    collect(h * 1, inner.table.detach()).backward(delta @ F["table"] @ F["W"].t())
    assert relative_error(inner.below.weight.grad, h.grad.t() @ x) <= EXACT
    assert verify(model, x).balanced


@pytest.mark.parametrize("collect", SIGNALS)
def test_compiled_signals_that_were_written_have_the_same_error(collect):
    torch.manual_seed(0)
    model = convert(Collected(collect).double(), "fa")
    assert_compiled_is_eager(model, torch.randn(3, 4).double())


class Untraced(nn.Module):
    """Does the same after a line that no trace gets past."""

    def __init__(self, assemble, collect):
        super().__init__()
        self.assemble, self.collect = assemble, collect
        self.a, self.b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3, 2))
        self.below, self.W = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        count = int(x.abs().sum()) % 2 + 1
        signal = self.collect(self.below(x), x.new_ones(3, 4))
        return (signal @ self.W) @ self.assemble(self.a, self.b, x).t() * count


@pytest.mark.parametrize("collect", SIGNALS)
def test_an_example_shows_a_weight_that_is_applied_to_a_signal_written_in_place(collect):
    torch.manual_seed(0)
    x = torch.randn(3, 4).double()
    plain = Untraced(looped, collect).double()
    model = convert(plain, "fa", example=((x,), {}))
    assert {site.weight for site in model.conversion.sites} == {"below.weight", "W"}
    assert "a" in {one.name for one in model.conversion.skipped}
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    h = model.below(x).detach().requires_grad_()
    F = feedback_of(model, "W").feedback_weight(model.W).detach()
    kernel = looped(model.a.detach(), model.b.detach(), x) * (int(x.abs().sum()) % 2 + 1)
    collect(h * 1, torch.ones_like(x)).backward(delta @ kernel @ F.t())
    assert relative_error(model.below.weight.grad, h.grad.t() @ x) <= EXACT


class Recurrent(nn.Module):
    """Begins with a state of zeros, and writes each into a tensor made before."""

    def __init__(self, begin):
        super().__init__()
        self.begin = begin
        self.inward, self.W = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
        self.recurrent, self.first = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        state, states = self.begin(self, x), torch.zeros(x.shape[0], 3, 4, dtype=x.dtype)
        for step in range(3):
            state = torch.tanh(self.inward(x[:, step]) + state @ self.recurrent)
            states[:, step] = state
        return states @ self.W


BEGIN = {
    "new zeros": lambda self, x: x.new_zeros(x.shape[0], 4),
    "zeros": lambda self, x: torch.zeros(2, 4, dtype=x.dtype),
    "zeros like": lambda self, x: torch.zeros_like(x[:, 0]),
    "learned": lambda self, x: self.first.expand(2, 4),
}


@pytest.mark.parametrize("name", BEGIN)
def test_a_recurrent_forward_has_the_formulas_error_whatever_it_begins_with(name):
    torch.manual_seed(0)
    model = convert(Recurrent(BEGIN[name]).double(), "fa")
    x = torch.randn(2, 3, 4).double().requires_grad_()
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    F_W, F_recurrent = (
        feedback_of(model, n).feedback_weight(getattr(model, n)).detach() for n in ("W", "recurrent")
    )
    F_inward = feedback_of(model.inward).feedback_weight(model.inward.weight).detach()
    states = [BEGIN[name](model, x).detach()]
    for step in range(3):
        states.append(torch.tanh(model.inward(x[:, step]) + states[-1] @ model.recurrent).detach())
    carried, expected = 0, torch.zeros_like(x)
    for step in (2, 1, 0):
        carried = (carried + (delta @ F_W.t())[:, step]) * (1 - states[step + 1] ** 2)
        expected[:, step] = carried @ F_inward
        carried = carried @ F_recurrent.t()
    assert relative_error(x.grad, expected) <= EXACT
    assert verify(model, x.detach()).balanced


class Masked(nn.Module):
    """Applies its table again, and makes a mask by writing into zeros."""

    def __init__(self):
        super().__init__()
        self.table, self.W = nn.Embedding(10, 8), nn.Parameter(torch.randn(8, 8))

    def forward(self, numbers):
        h = self.table(numbers)
        mask = torch.zeros_like(numbers, dtype=h.dtype)
        mask[numbers == 0] = -1e9
        return ((h @ h.mT + mask[:, None]).softmax(-1) @ h @ self.W) @ self.table.weight.t()


def test_a_mask_that_is_written_costs_no_break_in_a_compiled_graph():
    torch.compiler.reset()
    model = convert(Masked(), "fa", strict=True)
    numbers = torch.randint(0, 10, (2, 5))
    torch.compile(model, backend="aot_eager", fullgraph=True)(numbers).sum().backward()
