"""What a call leaves in an attribute for the next: a state is an activation, a computed weight is refused."""

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from torch import nn

from pfa_convert import UserError, convert, verify
from pfa_convert.audit.verify import uses


class InAnAttribute(nn.Module):
    """A recurrent network that is given one step at a time."""

    def __init__(self):
        super().__init__()
        self.inward, self.recurrent = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 4) / 2)
        self.state = None

    def forward(self, x):
        before = torch.zeros(2, 4, dtype=x.dtype) if self.state is None else self.state
        self.state = torch.tanh(self.inward(x) + before @ self.recurrent)
        return self.state


class InABuffer(InAnAttribute):
    def __init__(self):
        super().__init__()
        del self.state
        self.register_buffer("state", torch.zeros(2, 4, dtype=torch.float64))


class InAList(InAnAttribute):
    def __init__(self):
        super().__init__()
        self.states = []

    def forward(self, x):
        self.state = self.states[-1] if self.states else None
        self.states.append(super().forward(x))
        return self.states[-1]


class InAChild(InAnAttribute):
    """Its child's attribute has the state, and the child's code never sees it."""

    class Memory(nn.Module):
        state = None

    def __init__(self):
        super().__init__()
        self.memory = InAChild.Memory()

    def forward(self, x):
        self.state = self.memory.state
        self.memory.state = super().forward(x)
        return self.memory.state


@pytest.mark.parametrize("kind", [InAnAttribute, InABuffer, InAList, InAChild])
def test_a_state_has_the_formulas_error_from_one_call_to_the_next(kind):
    model = convert(kind().double(), "fa", strict=True)
    assert [site.name for site in model.conversion.sites] == ["inward", "recurrent"]
    steps = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    states = [model(x) for x in steps]
    delta = torch.randn_like(states[-1])
    gradients = torch.autograd.grad(states[-1], [*steps, model.recurrent], delta)

    F = feedback_of(model.inward).feedback_weight(model.inward.weight).detach()
    F_recurrent = feedback_of(model, "recurrent").feedback_weight(model.recurrent).detach()
    expected, of_recurrent = [], torch.zeros_like(model.recurrent)
    for step in (2, 1, 0):
        inside = delta * (1 - states[step].detach() ** 2)
        expected.insert(0, inside @ F)
        of_recurrent += states[step - 1].detach().t() @ inside if step else 0
        delta = inside @ F_recurrent.t()
    for found, formula in zip(gradients, [*expected, of_recurrent], strict=True):
        assert relative_error(found, formula) <= EXACT


@pytest.mark.parametrize("kind", [InAnAttribute, InABuffer])
def test_verify_takes_a_state_with_a_history_for_an_activation(kind):
    model, x = convert(kind().double(), "fa"), torch.randn(2, 3, dtype=torch.float64)
    for way in ("among weights", "feedback", "feedback"):
        ways = {use.way for use in uses(model, x) if use.parameters == ("recurrent",) and use.linear}
        assert ways == {way} and verify(model, x).balanced
        model(x)


class WithManyWays(InAnAttribute):
    """Its eight ways would be sixty-four in two calls, too many to follow; the last one applies a weight."""

    def __init__(self):
        super().__init__()
        self.rare = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        passed = [least for least in (1e3, 1e4, 1e5) if x.abs().max() > least]
        return super().forward(x @ self.rare if len(passed) == 3 else x)


def test_a_second_call_makes_no_more_ways():
    sites = convert(WithManyWays(), "fa", strict=True).conversion.sites
    assert {site.name for site in sites} == {"inward", "recurrent", "rare"}


class Kept(nn.Module):
    """Computes its weight once."""

    def __init__(self):
        super().__init__()
        self.W, self.K = nn.Parameter(torch.randn(4, 4)), None

    def forward(self, x):
        if self.K is None:
            self.K = self.W - self.W.mean()
        return x @ self.K.t()


class Prepared(nn.Module):
    """Computes its weight where a user asks for it."""

    def __init__(self):
        super().__init__()
        self.W, self.K = nn.Parameter(torch.randn(4, 4)), None

    def prepare(self):
        self.K = self.W - self.W.mean()

    def forward(self, x):
        return x @ self.K


def test_a_computed_weight_that_is_kept_for_the_next_call_is_named():
    model = convert(Kept(), "fa")
    (skipped,) = model.conversion.skipped
    assert skipped.name == "W" and skipped.reason.startswith("a call leaves what it computes of it")
    with pytest.raises(UserError, match="W"):
        convert(Kept(), "fa", strict=True)


@pytest.mark.parametrize("kind", [Kept, Prepared])
def test_verify_knows_a_weight_that_was_computed_before(kind):
    model, x = convert(kind(), "fa"), torch.randn(2, 4)
    if kind is Kept:
        assert verify(model, x).balanced
        model(x)
    else:
        model.prepare()
    (entry,) = verify(model, x).unaccounted
    assert entry.name == "W" and "mm (mat2) applies it without feedback" in entry.what
