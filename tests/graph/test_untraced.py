"""What torch.fx cannot look into: redirected, walked child by child, or reported with its reason."""

import pytest
import torch
from harness import EXACT, error_below, feedback_of, relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import convert, verify
from pfa_convert.errors import UserError


class LeafUser(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return leaf(x, self.first.weight, self.second.weight, self.second.bias)


def leaf(x, first, second, bias):
    x = functional.linear(x, first)
    if x.sum() > 1e9:  # data-dependent: torch.fx cannot follow
        x = x * 0
    return functional.linear(torch.relu(x), second, bias)


torch.fx.wrap("leaf")


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.own = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.inner(x) if float(x.sum()) > 0 else functional.linear(x, self.own)


def test_weights_applied_inside_an_untraced_function_are_redirected():
    model = convert(LeafUser().double(), "fa")
    assert [site.name for site in model.conversion.sites] == ["first", "second"]
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    delta = torch.ones(3, 3).double() @ feedback_of(model.second).F0
    delta = delta * (functional.linear(x, model.first.weight) > 0)
    assert relative_error(x.grad, delta @ feedback_of(model.first).F0) <= EXACT


def test_what_cannot_be_traced_is_walked_child_by_child_and_reported():
    model = convert(nn.Sequential(DataDependent(), nn.Linear(4, 2)), "fa")
    assert [site.name for site in model.conversion.sites] == ["0.inner", "1"]
    (left,) = model.conversion.skipped
    assert left.name == "0.own" and left.weight_shape == (4, 4) and "float(x.sum())" in left.reason


def test_lazy_layers_are_reported():
    model = convert(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)))
    assert [left.name for left in model.conversion.skipped] == ["0"]
    assert "lazily built" in model.conversion.skipped[0].reason


def casting_leaf(x, weight):
    if x.sum() > 1e9:  # data-dependent: torch.fx cannot follow
        x = x * 0
    return functional.linear(x, weight.to(x.dtype, copy=True))


torch.fx.wrap("casting_leaf")


class CastingLeafUser(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return casting_leaf(x, self.fc.weight)


def test_a_weight_that_an_untraced_function_copies_has_its_feedback():
    model = convert(CastingLeafUser().double(), "fa")
    below = error_below(model, torch.randn(2, 4, dtype=torch.float64))
    assert relative_error(below, torch.ones(2, 3).double() @ feedback_of(model.fc).F0) <= EXACT


class ChildsWeightBehindControlFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return functional.linear(x, self.fc.weight) if x.norm() > 0 else x


def test_a_layer_whose_weight_an_untraceable_module_applies_itself_has_its_feedback():
    model = convert(ChildsWeightBehindControlFlow().double(), "fa")
    assert [site.name for site in model.conversion.sites] == ["fc"]
    below = error_below(model, torch.randn(2, 3, 4, dtype=torch.float64))
    assert relative_error(below, torch.ones(2, 3, 4).double() @ feedback_of(model.fc).F0) <= EXACT


def test_recurrent_weights_are_reported():
    report = convert(nn.LSTM(4, 3), "fa").conversion
    assert not report.sites and {left.name for left in report.skipped} == {"weight_ih_l0", "weight_hh_l0"}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_a_hook_computes_is_reported():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    report = convert(model, "fa", inplace=True).conversion
    assert [site.name for site in report.sites] == ["1"]
    assert "hook" in report.skipped[0].reason


class Language(nn.Module):
    """Ties its output to its embedding by itself, behind a condition on the length, as is common."""

    def __init__(self, check):
        super().__init__()
        self.check = check
        self.words, self.places, self.layer = nn.Embedding(7, 4), nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, index):
        return self.layer(self.embedded(index)) @ self.words.weight.T

    def embedded(self, index):
        _, length = index.shape
        self.check(length)
        return self.words(index) + self.places(torch.arange(length))


def raises(length):
    if length > 9:
        raise ValueError("too long")


def asserts(length):
    assert length <= 9


def converts(length):
    return float(length)


@pytest.mark.parametrize("check", [raises, asserts, converts])
def test_a_table_that_is_applied_behind_a_condition_on_the_length_is_a_site(check):
    plain, index = Language(check).double(), torch.randint(7, (2, 5))
    model = convert(plain, "fa", strict=True)
    assert {site.weight for site in model.conversion.sites} == {"layer.weight", "words.weight"}
    assert [other.name for other in model.conversion.others] == ["places.weight"]
    assert torch.equal(model(index), plain(index))
    model(index).sum().backward()
    below = torch.ones(2, 5, 7).double() @ feedback_of(model.words).F0
    assert relative_error(model.layer.bias.grad, below.sum((0, 1))) <= EXACT


@pytest.mark.parametrize("positive", [True, False])
def test_every_branch_is_searched_for_weights(positive):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.yes, self.no = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))

        def forward(self, x):
            while x.norm() > 1e3:
                x = x / 2
            return x @ self.yes if x.sum() > 0 else x @ self.no

    model = convert(Branches().double(), "fa")
    assert {site.weight for site in model.conversion.sites} == {"yes", "no"}
    x = torch.full((2, 4), 1.0 if positive else -1.0).double()
    F0 = feedback_of(model, "yes" if positive else "no").F0
    assert relative_error(error_below(model, x), torch.ones(2, 4).double() @ F0.T) <= EXACT


def test_a_table_that_may_be_applied_where_nothing_can_be_followed_is_named():
    class Unclear(Language):
        def forward(self, index):
            h = self.layer(self.words(index)) * float(index.sum() > 0)
            return h @ self.words.weight.T

    report = convert(Unclear(None), "fa").conversion
    assert [left.name for left in report.skipped] == ["words.weight"]


def test_a_childs_weight_behind_an_optional_argument_is_a_site():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer = nn.Embedding(7, 4), nn.Linear(4, 4)

        def forward(self, x, targets=None):
            h = self.layer(x)
            return h if targets is None else functional.cross_entropy(h @ self.words.weight.T, targets)

    plain = Loss().double()
    model, x, targets = convert(plain, "fa"), torch.randn(3, 4).double(), torch.tensor([1, 2, 0])
    model(x, targets).backward()
    scores = (plain.layer(x) @ plain.words.weight.T).detach().requires_grad_()
    functional.cross_entropy(scores, targets).backward()
    assert relative_error(model.layer.bias.grad, (scores.grad @ feedback_of(model.words).F0).sum(0)) <= EXACT


def test_childrens_weights_behind_a_flag_that_is_set_later_have_their_feedback():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.fused = nn.Linear(4, 3, bias=False), nn.Linear(4, 2, bias=False), False

        def forward(self, x):
            if self.fused:
                return functional.linear(x, torch.cat([self.q.weight, self.k.weight]))
            return torch.cat([self.q(x), self.k(x)], -1)

    model, x = convert(Fused().double(), "fa"), torch.randn(3, 4).double()
    apart = error_below(model, x)
    model.fused = True
    assert relative_error(error_below(model, x), apart) <= EXACT


def test_a_compiled_layer_among_others_is_converted():
    compiled = torch.compile(nn.Linear(4, 4), backend="eager")
    report = convert(nn.Sequential(compiled, nn.Linear(4, 3)), "fa").conversion
    assert [site.weight for site in report.sites] == ["0._orig_mod.weight", "1.weight"]


class Calling(nn.Module):
    """Applies what a function makes of a weight."""

    def forward(self, x, w, function):
        return x @ function(w)


class HandingAFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.W, self.table = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(1, 4))
        self.child = Calling()

    def forward(self, x):
        return self.child(x + self.table, self.W, torch.t)


def test_a_weight_that_is_handed_to_a_child_in_code_that_cannot_be_followed_is_skipped_with_the_line():
    model, x = convert(HandingAFunction(), "fa"), torch.randn(5, 4)
    (skipped,) = model.conversion.skipped
    assert skipped.name == "W" and "self.child(x + self.table, self.W, torch.t)" in skipped.reason
    assert [(other.name, other.use) for other in model.conversion.others] == [("table", "added")]
    assert verify(model, x).balanced
    with pytest.raises(UserError, match=r"self\.W, torch\.t"):
        convert(HandingAFunction(), "fa", strict=True)


def test_an_example_shows_that_it_is_applied():
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    model = convert(HandingAFunction().double(), "fa", example=((x.detach(),), {}), strict=True)
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    F = feedback_of(model, "W").feedback_weight(model.W)
    assert relative_error(x.grad, delta @ F) <= EXACT  # y = (x + table) W^T
    assert relative_error(model.W.grad, delta.t() @ (x + model.table).detach()) <= EXACT
    assert verify(model, x.detach()).balanced


class CutShort(nn.Module):
    """Scales or looks up a weight, and applies it after a line that cannot be followed."""

    def __init__(self, choose):
        super().__init__()
        self.choose = choose
        self.W, self.gate = nn.Parameter(torch.randn(3, 4, 4)), nn.Linear(4, 4)
        self.table, self.gain = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.randn(4, 1))

    def forward(self, x, index):
        x = (x + self.table) * self.gain.t()
        weight = self.choose(self, x, index)
        longest = int(x.amax(-1).argmax())
        return torch.einsum("bio,bi->bo", weight, x) * (longest + 1)


CHOSEN = {
    "scaled": lambda self, x, index: self.W * self.gate(x)[:, None],
    "looked up": lambda self, x, index: self.W[index],
    "looked up, scaled": lambda self, x, index: self.W[index] * self.gate(x)[:, None],
}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_weight_that_was_on_its_way_where_tracing_ended_is_skipped_with_the_line(name):
    model = CutShort(CHOSEN[name])
    report = convert(model, "fa").conversion
    (skipped,) = report.skipped
    assert skipped.name == "W" and "longest = int(x.amax(-1)" in skipped.reason
    assert [(other.name, other.use) for other in report.others] == [("table", "added"), ("gain", "scale")]
    with pytest.raises(UserError, match="argmax"):
        convert(model, "fa", strict=True)
