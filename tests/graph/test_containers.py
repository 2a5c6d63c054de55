"""Modules with weights of their own that go through what they hold: they meet their own modules alone."""

import copy
import pickle

import pytest
import torch
from harness import EXACT, error_below, feedback_of, relative_error
from torch import nn

from pfa_convert import convert, revert, verify
from pfa_convert.comparison import forward_difference


class Weighted:
    """Has layers, which a subclass runs through, and a weight that it applies to what they return."""

    def weights(self):
        self.W = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return self.through(x) @ self.W.t() / len(self.layers())

    def layers(self):
        return list(self)


def layers():
    return nn.Linear(4, 4), nn.ReLU()


class OwnSequential(Weighted, nn.Sequential):
    def __init__(self):
        super().__init__(*layers())
        self.weights()

    def through(self, x):
        return nn.Sequential.forward(self, x)


class OwnList(Weighted, nn.ModuleList):
    def __init__(self):
        super().__init__(layers())
        self.weights()

    def through(self, x):
        return self[-1](self[0](x))


class OwnDict(Weighted, nn.ModuleDict):
    def __init__(self):
        super().__init__({"0": layers()[0], "1": layers()[1]})
        self.weights()

    def through(self, x):
        for name, layer in self.items():
            assert layer is self[name]
            x = layer(x)
        return x

    def layers(self):
        assert list(self) == list(self.keys())
        return list(self.values())


class OwnChildren(Weighted, nn.Module):
    def __init__(self):
        super().__init__()
        self.weights()
        first, second = layers()
        self.add_module("0", first)
        self.add_module("1", second)

    def through(self, x):
        for layer in self.children():
            x = layer(x)
        return x

    def layers(self):
        return [child for _, child in self.named_children()]


class Reversed(OwnList):
    """Has a way through its entries of its own, which asks PyTorch's."""

    def __iter__(self):
        return reversed([*super().__iter__()])

    def through(self, x):
        second, first = self
        return second(first(x))


KINDS = [OwnSequential, OwnList, OwnDict, OwnChildren, Reversed]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def problem(request):
    torch.manual_seed(0)
    return request.param().double(), torch.randn(5, 4, dtype=torch.float64)


def formula(model, x):
    layer = model._modules["0"]
    error = torch.ones(5, 3).double() / 2 @ feedback_of(model, "W").F0 * (layer(x) > 0)
    return error @ feedback_of(layer).F0


def test_the_forward_meets_its_own_modules_alone(problem):
    plain, x = problem
    model = convert(plain, "fa", strict=True)
    assert {site.weight for site in model.conversion.sites} == {"0.weight", "W"}
    assert forward_difference(plain, model, x) == 0 and verify(model, x).balanced
    for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(again.layers()) == 2
        assert relative_error(error_below(again, x), formula(model, x)) <= EXACT
    assert type(revert(model)) is type(plain)


def test_compiled_it_is_the_same(problem):
    plain, x = problem
    model = convert(plain, "fa")
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert relative_error(error_below(compiled, x), formula(model, x)) <= EXACT


def test_feedback_weights_move_with_their_module_and_are_saved_with_it(problem):
    model = convert(problem[0], "fa").float()
    assert feedback_of(model, "W").F0.dtype == torch.float32
    assert {"feedback_of_W.F0", "0.feedback_of_weight.F0"} < model.state_dict().keys()
    assert feedback_of(model, "W") in model.modules()


class Asks(nn.Module):
    """Asks another module for its children, as code does that counts or wraps them."""

    def __init__(self):
        super().__init__()
        self.inner = OwnChildren()

    def forward(self, x):
        return self.inner(x) * len(list(self.inner.children()))


def test_another_modules_code_may_ask_too():
    plain, x = Asks(), torch.randn(5, 4)
    assert forward_difference(plain, convert(plain, "fa"), x) == 0
