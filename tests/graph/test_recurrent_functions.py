"""PyTorch's recurrent functions, given Parameters of the forward's own: named, as none has feedback."""

import pytest
import torch
from harness import EXACT, relative_error
from test_forward_is_the_users import module, parameter

from pfa_convert import convert, verify
from pfa_convert.errors import UserError

N = 4


def layer_of(function, state):
    def run(self, x):
        settings = (False, 1, 0.0, self.training, False, False)
        return function(x, state(self, x), [self.w_ih, 1 * self.w_hh], *settings)[0]

    return run


def one(self, x):
    return self.state.expand(1, x.shape[1], N).contiguous()


CALLS = {
    "lstm_cell": (lambda self, x: torch.lstm_cell(x, (x, x), self.w_ih, self.w_hh)[0], 4),
    "gru_cell": (lambda self, x: torch.gru_cell(x, x, w_ih=self.w_ih, w_hh=self.w_hh), 3),
    "rnn_tanh_cell": (
        lambda self, x: torch.rnn_tanh_cell(x, x, self.w_ih, self.w_hh, self.b, self.b),
        1,
    ),
    "rnn_relu_cell": (
        lambda self, x: torch.rnn_relu_cell(x, self.state[0].expand(x.shape), self.w_ih, self.w_hh.t()),
        1,
    ),
    "lstm": (layer_of(torch.lstm, lambda self, x: (x[:1], one(self, x))), 4),
    "gru": (layer_of(torch.gru, one), 3),
    "rnn_tanh": (layer_of(torch.rnn_tanh, one), 1),
    "rnn_relu": (layer_of(torch.rnn_relu, lambda self, x: x[:1]), 1),
}


def given(name):
    torch.manual_seed(0)
    forward, gates = CALLS[name]
    weights = {"w_ih": parameter(gates * N, N), "w_hh": parameter(gates * N, N), "b": parameter(N)}
    model = module(forward, **weights, state=parameter(1, 1, N)).double()
    return model, torch.randn((5, N) if name.endswith("cell") else (3, 5, N), dtype=torch.float64)


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_its_weights_are_named_and_keep_backpropagation(name, example):
    plain, x = given(name)
    model = convert(plain, "fa", example=((x,), {}) if example else None)
    assert {skipped.name for skipped in model.conversion.skipped} == {"w_ih", "w_hh"}
    reason = f"torch.{name} applies it inside one operation; nn."
    assert all(skipped.reason.startswith(reason) for skipped in model.conversion.skipped)
    assert [other.name for other in model.conversion.others] == ["state"]
    assert verify(model, x).balanced
    errors = []
    for converted in (model, plain):
        inputs = x.clone().requires_grad_()
        converted(inputs).square().sum().backward()
        errors.append(inputs.grad)
    assert relative_error(*errors) <= EXACT


@pytest.mark.parametrize("name", CALLS)
def test_strict_refuses_it(name):
    with pytest.raises(UserError, match=f"torch.{name} applies it"):
        convert(given(name)[0], "fa", strict=True)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "rnn_relu_cell"])
def test_a_learned_state_is_an_input(name):
    (other,) = convert(given(name)[0], "fa").conversion.others
    assert (other.name, other.use) == ("state", "learned input")
