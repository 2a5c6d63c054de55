"""What a call leaves in an attribute for the next: a state is an activation, a computed weight is refused."""

import functools

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


class InAnObject(InAnAttribute):
    """A cache of the user's own class, in a list of them."""

    class Cache:
        state = None

    def __init__(self):
        super().__init__()
        self.caches = [InAnObject.Cache()]

    def forward(self, x):
        self.state = self.caches[0].state
        self.caches[0].state = super().forward(x)
        return self.caches[0].state


class Checked(InAnAttribute):
    """Begins again where the batch has another size, as the code of recurrent networks does."""

    def forward(self, x):
        if self.state is None or self.state.shape[0] != x.shape[0] or self.state.device != x.device:
            self.state = x.new_zeros(x.shape[0], 4)
        assert self.state.shape[0] == x.shape[0]
        return super().forward(x)


STATES = [InAnAttribute, InABuffer, InAList, InAChild, InAnObject, Checked]


@pytest.mark.parametrize("kind", STATES)
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


class InEvaluation(Kept):
    """Computes its weight once while it is evaluated."""

    def forward(self, x):
        if self.training:
            self.K = None
            return x @ (self.W - self.W.mean()).t()
        return super().forward(x)


class Normalized(nn.Module):
    """Spectral norm by hand: one step of power iteration in each call."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("u", torch.randn(4))

    def forward(self, x):
        with torch.no_grad():
            v = nn.functional.normalize(self.W.t() @ self.u, dim=0)
            self.u = nn.functional.normalize(self.W @ v, dim=0)
        return x @ (self.W / (self.u @ self.W @ v))


class Masked(Kept):
    """Decides once which elements count."""

    def forward(self, x):
        if self.K is None:
            self.K = (self.W.detach().abs() > 0.1).float()
        return nn.functional.linear(x, self.W * self.K)


class Quantised(nn.Module):
    """Hands its weight to a module that keeps the range of what it saw, and the last result."""

    class Range(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = None
            self.register_buffer("most", torch.zeros(()))

        def forward(self, w):
            if self.last is not None and self.last.shape != w.shape:
                raise ValueError
            with torch.no_grad():
                self.most = torch.maximum(self.most, w.abs().max())
            self.last = torch.clamp(w / self.most, -1, 1) * self.most
            return self.last

    def __init__(self):
        super().__init__()
        self.W, self.range = nn.Parameter(torch.randn(4, 4)), Quantised.Range()

    def forward(self, x):
        return nn.functional.linear(x, self.range(self.W))


@pytest.mark.parametrize("kind", [InEvaluation, Normalized, Masked, Quantised])
def test_what_else_a_weight_meets_may_be_kept(kind):
    (site,) = convert(kind(), "fa", strict=True).conversion.sites
    assert site.name == "W"


class Delayed(InAnAttribute):
    """Its weight meets what came three steps before."""

    def __init__(self):
        super().__init__()
        self.past = []

    def forward(self, x):
        h = self.inward(x)
        y = h + self.past[-3] @ self.recurrent if len(self.past) >= 3 else h
        self.past = [*self.past[-2:], h]
        return y


def test_a_state_may_be_needed_some_calls_later():
    assert [s.name for s in convert(Delayed(), "fa", strict=True).conversion.sites] == ["inward", "recurrent"]


def test_containers_may_hold_themselves():
    model = InAChild()
    model.memory.table = {"entries": []}
    model.memory.table["entries"].append(model.memory.table)
    assert len(convert(model, "fa").conversion.sites) == 2


class Moved(nn.Module):
    """A method of its own puts something else in the place of a child's Parameter."""

    class Child(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return x @ self.W

    def __init__(self):
        super().__init__()
        self.child = Moved.Child()

        self.own = nn.Parameter(torch.randn(4, 4))

    def move(self, w):
        self.child._parameters["W"] = w.float()

    def added(self, x):
        return self.child.W + x

    def forward(self, x):
        return self.child(x)


class Memoised(nn.Module):
    """Remembers what it computed of its weight, outside of the module."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(4, 4))

    @functools.lru_cache  # noqa: B019
    def centred(self):
        return self.W - self.W.mean()

    def forward(self, x):
        return x @ self.centred()


def test_what_one_trace_left_does_not_get_into_another():
    assert [site.name for site in convert(Moved(), "fa").conversion.sites] == ["child.W"]
    assert [site.name for site in convert(Memoised(), "fa").conversion.sites] == ["W"]


class KeptInAnObject(Kept):
    """Keeps it in an object of a class of its own."""

    def __init__(self):
        super().__init__()
        self.cache = InAnObject.Cache()

    def forward(self, x):
        if self.cache.state is None:
            self.cache.state = self.W - self.W.mean()
        return x @ self.cache.state


@pytest.mark.parametrize("kind", [Kept, KeptInAnObject])
def test_a_computed_weight_that_is_kept_for_the_next_call_is_named(kind):
    (skipped,) = convert(kind(), "fa").conversion.skipped
    assert skipped.name == "W" and skipped.reason.startswith("a call leaves what it computes of it")
    with pytest.raises(UserError, match="W"):
        convert(kind(), "fa", strict=True)


@pytest.mark.parametrize("kind", [Kept, KeptInAnObject, Prepared])
def test_verify_knows_a_weight_that_was_computed_before(kind):
    model, x = convert(kind(), "fa"), torch.randn(2, 4)
    if kind is Prepared:
        model.prepare()
    else:
        model(x)
    (entry,) = verify(model, x).unaccounted
    assert entry.name == "W" and "mm (mat2) applies it without feedback" in entry.what


class Remembers(nn.Module):
    """Attends to what it made of the tokens before: a table, a norm and positions have weights, too."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 4), nn.LayerNorm((3, 4))
        self.positions, self.before = nn.Parameter(torch.randn(3, 4)), None

    def forward(self, tokens):
        h = self.norm(self.table(tokens) + self.positions)
        memory = h if self.before is None else self.before
        self.before = h
        return torch.softmax(h @ memory.mT, -1) @ memory


def test_verify_takes_no_memory_for_a_weight():
    model, tokens = convert(Remembers(), "fa"), torch.randint(9, (2, 3))
    model(tokens)
    assert verify(model, tokens).balanced
