"""`nn.RNNCell`, `nn.LSTMCell`, `nn.GRUCell`: one step of a recurrent network, from input and state.

The gates are computed as PyTorch computes them, operation by operation: `W_hh h + b_hh + W_ih x + b_ih`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfa_convert.feedback.functional import linear
from pfa_convert.feedback.layers.base import LAYERS, AppliedWeight

State = tuple[Tensor, ...]
"""The hidden state `h` `(batch, N_hidden)`; of an LSTM, `h` and the state `c` of its cells."""


@LAYERS.register(nn.LSTMCell, weights=("weight_ih", "weight_hh"))
def lstm_cell(layer: Any, ih: AppliedWeight, hh: AppliedWeight, input: Tensor, hx: Any = None) -> State:
    """Return `h` and `c` `(batch, N_hidden)` for an input `(batch, N_in)`, or all without a batch."""
    if not torch.is_grad_enabled():
        return nn.LSTMCell.forward(layer, input, hx)
    x, state = _batched(layer, input, hx, states=2)
    h, c = state
    if x.is_cuda:
        gates = (linear(x, ih.value, feedback=ih.feedback), linear(h, hh.value, feedback=hh.feedback))
        state = torch.ops.aten._thnn_fused_lstm_cell(*gates, c, layer.bias_ih, layer.bias_hh)[:2]
    else:
        state = lstm_step(gates_of(x, ih, layer.bias_ih), gates_of(h, hh, layer.bias_hh), state)
    return tuple(_like(input, s) for s in state)


@LAYERS.register(nn.GRUCell, weights=("weight_ih", "weight_hh"))
def gru_cell(layer: Any, ih: AppliedWeight, hh: AppliedWeight, input: Tensor, hx: Any = None) -> Tensor:
    """Return `h` `(batch, N_hidden)` for an input `(batch, N_in)`, or both without a batch."""
    if not torch.is_grad_enabled():
        return nn.GRUCell.forward(layer, input, hx)
    x, (h,) = _batched(layer, input, hx, states=1)
    if x.is_cuda:
        gates = (linear(x, ih.value, feedback=ih.feedback), linear(h, hh.value, feedback=hh.feedback))
        h = torch.ops.aten._thnn_fused_gru_cell(*gates, h, layer.bias_ih, layer.bias_hh)[0]
    else:
        (h,) = gru_step(gates_of(x, ih, layer.bias_ih), gates_of(h, hh, layer.bias_hh), (h,))
    return _like(input, h)


@LAYERS.register(nn.RNNCell, weights=("weight_ih", "weight_hh"))
def rnn_cell(layer: Any, ih: AppliedWeight, hh: AppliedWeight, input: Tensor, hx: Any = None) -> Tensor:
    """Return `h` `(batch, N_hidden)` for an input `(batch, N_in)`, or both without a batch."""
    if not torch.is_grad_enabled():
        return nn.RNNCell.forward(layer, input, hx)
    x, (h,) = _batched(layer, input, hx, states=1)
    from_x, from_h = gates_of(x, ih, layer.bias_ih), gates_of(h, hh, layer.bias_hh)
    (h,) = (relu_step if layer.nonlinearity == "relu" else tanh_step)(from_x, from_h, (h,))
    return _like(input, h)


def gates_of(x: Tensor, weight: AppliedWeight, bias: Tensor | None) -> Tensor:
    """Return `W x + b`."""
    return linear(x, weight.value, bias, feedback=weight.feedback)


def lstm_step(from_x: Tensor, from_h: Tensor, state: State) -> State:
    """Return `h = o tanh(c)` and `c = f c + i g`."""
    i, f, g, o = (from_h + from_x).chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(from_x: Tensor, from_h: Tensor, state: State) -> State:
    """Return `h = (1 - z) n + z h` with `n = tanh(x_n + r h_n)`."""
    (r_x, z_x, n_x), (r_h, z_h, n_h) = from_x.chunk(3, 1), from_h.chunk(3, 1)
    n = (n_x + n_h * (r_h + r_x).sigmoid()).tanh()
    return ((state[0] - n) * (z_h + z_x).sigmoid() + n,)


def tanh_step(from_x: Tensor, from_h: Tensor, state: State) -> State:
    """Return `h = tanh(x + h)`."""
    return ((from_h + from_x).tanh(),)


def relu_step(from_x: Tensor, from_h: Tensor, state: State) -> State:
    """Return `h = max(0, x + h)`."""
    return (functional.relu(from_h + from_x),)


def _batched(layer: Any, input: Tensor, hx: Any, states: int) -> tuple[Tensor, State]:
    """Return input and state with a batch dimension, the state of zeros where none is given."""
    given = () if hx is None else tuple(hx) if states > 1 else (hx,)
    name = type(layer).__name__.removeprefix("Feedback")
    for argument, tensor in [("input", input), *(("hx", state) for state in given)]:
        if tensor.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected {argument} to be 1D or 2D, got {tensor.dim()}D instead")
    x = input if input.dim() == 2 else input.unsqueeze(0)
    if not given:
        given = (x.new_zeros(len(x), layer.hidden_size),) * states
    return x, tuple(s if s.dim() == 2 else s.unsqueeze(0) for s in given)


def _like(input: Tensor, state: Tensor) -> Tensor:
    return state if input.dim() == 2 else state.squeeze(0)
