"""Weights that are computed by functions that draw random numbers, or that write to buffers."""

import copy

import pytest
import torch
from harness import EXACT, relative_error
from test_forward_is_the_users import parameter
from test_products import gradients, inputs
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from pfa_convert import convert
from pfa_convert.alignment import feedback_of
from pfa_convert.feedback import functions


class Applied(nn.Module):
    """Applies what a module computes of its weight."""

    def __init__(self, computes):
        super().__init__()
        self.W = parameter(5, 4)
        self.computes = computes

    def forward(self, x):
        return functional.linear(functional.dropout(x, 0.3), self.computes(self.W))


class Computed(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, W):
        return self.function(W)


DRAWING = {
    "gumbel_softmax": functional.gumbel_softmax,
    "bernoulli": lambda W: W.sigmoid().bernoulli() * W,
    "torch.bernoulli": lambda W: torch.bernoulli(W.sigmoid()) + W,
    "dropout": lambda W: functional.dropout(W, 0.5),
    "alpha_dropout": lambda W: functional.alpha_dropout(W, 0.5, training=True),
    "rrelu": lambda W: functional.rrelu(W, training=True),
    "normal": lambda W: W + torch.normal(W, 0.1),
    "in place": lambda W: W + W.detach().clone().bernoulli_(0.5),
}


@pytest.mark.parametrize("rule", ["fa", "pfa", "kp"])
@pytest.mark.parametrize("name", DRAWING)
def test_F_is_computed_with_the_random_numbers_of_the_weight(name, rule):
    torch.manual_seed(0)
    plain = Applied(Computed(DRAWING[name])).double()
    model, twin = convert(plain, rule, example=((inputs(),), {})), copy.deepcopy(plain)
    with torch.no_grad():
        twin.W.copy_(feedback_of(model, "W").feedback_weight(plain.W))
    found = []
    for one in (model, plain, twin):
        torch.manual_seed(7)
        found.append((*gradients(one, inputs()), torch.get_rng_state()))
    (output, below, ours, state), (plain_output, _, theirs, plain_state), (_, twin_below, *_) = found
    assert torch.equal(output, plain_output) and torch.equal(state, plain_state)
    assert relative_error(below, twin_below) <= EXACT
    assert all(relative_error(ours[weight], theirs[weight]) <= EXACT for weight in theirs)


def test_the_elements_of_a_weight_of_zeros_are_dropped_in_F_alone():
    plain = Applied(nn.Dropout(0.5)).double()
    with torch.no_grad():
        plain.W.zero_()
    model = convert(plain, "fa")
    assert gradients(model, inputs())[1].any()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert gradients(compiled, inputs())[1].any()


def test_every_function_of_pytorchs_that_draws_is_known_to():
    """Left out are those that take no values from a tensor, and those that compute no weight."""
    left_out = {"rand", "randn", "randint", "randperm", "lstm", "gru", "rnn_tanh", "rnn_relu", "miopen_rnn"}
    unknown = set()
    for schema in torch._C._jit_get_all_schemas():
        name = schema.name.removeprefix("aten::")
        if not hasattr(torch.ops.aten, name) or name.startswith("_") or name.endswith("_like"):
            continue
        packet = getattr(torch.ops.aten, name)
        if torch.Tag.nondeterministic_seeded not in getattr(packet, packet.overloads()[0]).tags:
            continue
        for home in (torch, torch.Tensor):
            if callable(getattr(home, name, None)) and not functions.draws(getattr(home, name)):
                unknown.add(name)
    assert unknown <= left_out


WRITING = {
    "batch norm": lambda: nn.BatchNorm1d(4, affine=False),
    "fake quantisation": lambda: torch.ao.quantization.FusedMovingAvgObsFakeQuantize(),
    "fake quantisation by an observer": lambda: torch.ao.quantization.FakeQuantize(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", WRITING)
def test_F_leaves_the_buffers_to_the_weight(name):
    torch.manual_seed(0)
    plain = Applied(WRITING[name]())
    for one in plain.computes.modules():
        one.averaging_constant = 0.5
    x = inputs().float()
    model, through = convert(plain, "fa", example=((x,), {})), convert(plain, "fa", example=((x,), {}))
    with torch.no_grad():
        through.feedback_of_W.F0.copy_(plain.W)
    for _ in range(3):
        outputs, below = [], []
        for one in (plain, model, through):
            torch.manual_seed(7)
            output, error, _ = gradients(one, x)
            outputs.append(output)
            below.append(error)
        assert all(torch.equal(output, outputs[0]) for output in outputs)
        assert relative_error(below[2], below[0]) <= 1e-5 < relative_error(below[1], below[0])
    state = plain.computes.state_dict()
    for one in (model, through):
        assert all(torch.equal(state[key], value) for key, value in one.computes.state_dict().items())


@pytest.mark.parametrize(
    "computes", [nn.Dropout(0.5), nn.BatchNorm1d(4, affine=False)], ids=["drops", "writes"]
)
def test_a_parametrization_is_repeated_for_F_without_effect(computes):
    torch.manual_seed(0)
    plain = nn.Linear(4, 5).double()
    parametrize.register_parametrization(plain, "weight", copy.deepcopy(computes).double(), unsafe=True)
    model, twin = convert(plain, "fa"), copy.deepcopy(plain)
    raw = "parametrizations.weight.original"
    with torch.no_grad():
        twin.get_parameter(raw).copy_(feedback_of(model, raw).F0)
    found = []
    for one in (model, plain, twin):
        torch.manual_seed(7)
        found.append((*gradients(one, inputs()), torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][3], found[1][3])
    assert relative_error(found[0][1], found[2][1]) <= EXACT
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=False):
        assert ours.shape != theirs.shape or torch.equal(ours, theirs)
