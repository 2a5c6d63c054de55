"""`nn.RNN`, `nn.LSTM`, `nn.GRU`, step by step: PyTorch applies their weights inside one operation.

Only where `convert(..., unroll=True)` asks for it: the outputs are the fused operation's up to rounding, and
the loop over time costs what the fused operation saves. Without gradients, the fused one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from pfa_convert.feedback.layers.base import LAYERS, AppliedWeight
from pfa_convert.feedback.layers.recurrent import (
    State,
    gates_of,
    gru_step,
    lstm_step,
    relu_step,
    tanh_step,
)

Step = Callable[[Tensor, Tensor, State], State]

UNROLLED = "unrolled"
"""The attribute of a recurrent layer that asks for this."""


def recurrent_weights(layer: Any) -> Sequence[str]:
    """Return the names of all weights: two for each direction of each layer, three with a projection."""
    return [name for name in layer._flat_weights_names if name.startswith("weight")]


def is_unrolled(layer: Any) -> bool:
    """Say whether the layer was asked to be unrolled."""
    return bool(layer.__dict__.get(UNROLLED, False))


@LAYERS.register(nn.RNN, nn.LSTM, nn.GRU, weights=recurrent_weights, when=is_unrolled)
def recurrent_layer(layer: Any, *arguments: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return the outputs of the last layer at each step, and the final state, as the layer's class does."""
    weights = [argument for argument in arguments if isinstance(argument, AppliedWeight)]
    inputs = arguments[len(weights) :]
    if not torch.is_grad_enabled():
        return _FUSED[layer.mode].forward(layer, *inputs, **kwargs)
    return _unrolled(layer, dict(zip(recurrent_weights(layer), weights, strict=True)), *inputs, **kwargs)


def _unrolled(layer: Any, weights: dict[str, AppliedWeight], input: Any, hx: Any = None) -> tuple[Any, Any]:
    packed = input if isinstance(input, PackedSequence) else None
    batched = packed is not None or input.dim() == 3
    steps = _padded_steps(layer, input) if packed is None else list(packed.data.split(_sizes(packed)))
    state = _first_state(layer, hx, packed, steps[0], batched)
    as_given = state if layer.mode == "LSTM" else state[0]
    if packed is not None:
        layer.check_forward_args(packed.data, as_given, packed.batch_sizes)
    else:
        layer.check_forward_args(input if batched else input.unsqueeze(_batch(layer)), as_given, None)

    steps, finals = _all_layers(layer, weights, steps, state)
    final = tuple(torch.stack(states) for states in zip(*finals, strict=True))
    if packed is not None:
        output: Any = PackedSequence(
            torch.cat(steps), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        final = tuple(_permuted(s, packed.unsorted_indices) for s in final)
    else:
        output = torch.stack(steps, 1 if layer.batch_first and batched else 0)
        output = output if batched else output.squeeze(1)
        final = tuple(s if batched else s.squeeze(1) for s in final)
    return output, final if layer.mode == "LSTM" else final[0]


def _all_layers(
    layer: Any, weights: dict[str, AppliedWeight], steps: list[Tensor], state: State
) -> tuple[list[Tensor], list[State]]:
    """Return the outputs of the last layer, and the final state of each direction of each layer."""
    finals: list[State] = []
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    for depth in range(layer.num_layers):
        outputs = []
        for suffix in directions:
            first = tuple(s[len(finals)] for s in state)
            output, final = _one_direction(layer, weights, f"l{depth}{suffix}", steps, first, bool(suffix))
            outputs.append(output)
            finals.append(final)
        steps = [torch.cat(step, 1) if len(step) > 1 else step[0] for step in zip(*outputs, strict=True)]
        if layer.dropout and layer.training and depth < layer.num_layers - 1:
            dropped = functional.dropout(torch.cat(steps), layer.dropout, training=True)
            steps = list(dropped.split([len(step) for step in steps]))
    return steps, finals


def _one_direction(
    layer: Any, weights: dict[str, AppliedWeight], name: str, steps: list[Tensor], first: State, back: bool
) -> tuple[list[Tensor], State]:
    """Run one direction of one layer over time; sequences that are shorter end, or begin, in between."""
    hh, hr = weights[f"weight_hh_{name}"], weights.get(f"weight_hr_{name}")
    biases = [getattr(layer, f"bias_{part}_{name}") if layer.bias else None for part in ("ih", "hh")]
    from_x = gates_of(torch.cat(steps), weights[f"weight_ih_{name}"], biases[0])
    gates = from_x.split([len(step) for step in steps])
    step = _STEPS[layer.mode]
    outputs: list[Tensor] = [torch.empty(0)] * len(steps)
    state, ended = tuple(s[: len(steps[-1 if back else 0])] for s in first), []
    for time in reversed(range(len(steps))) if back else range(len(steps)):
        running, now = len(state[0]), len(steps[time])
        if now < running:
            ended.append(tuple(s[now:] for s in state))
            state = tuple(s[:now] for s in state)
        elif now > running:
            state = tuple(torch.cat([s, f[running:now]]) for s, f in zip(state, first, strict=True))
        state = step(gates[time], gates_of(state[0], hh, biases[1]), state)
        if hr is not None:
            state = (gates_of(state[0], hr, None), *state[1:])
        outputs[time] = state[0]
    parts = zip(state, *reversed(ended), strict=True)
    return outputs, tuple(torch.cat(part) for part in parts)


def _sizes(packed: PackedSequence) -> list[int]:
    sizes: list[int] = packed.batch_sizes.tolist()
    return sizes


def _batch(layer: Any) -> int:
    return 0 if layer.batch_first else 1


def _padded_steps(layer: Any, input: Tensor) -> list[Tensor]:
    """Return the input at each step, `(batch, N_in)`."""
    if input.dim() not in (2, 3):
        raise ValueError(f"{layer.mode}: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
    if input.dim() == 2:
        input = input.unsqueeze(1)
    elif layer.batch_first:
        input = input.transpose(0, 1)
    return list(input.unbind(0))


def _first_state(layer: Any, hx: Any, packed: PackedSequence | None, first: Tensor, batched: bool) -> State:
    """Return the state before the first step, `(layers and directions, batch, N_hidden)` each."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    if hx is None:
        sizes = [layer.proj_size or layer.hidden_size, *([layer.hidden_size] if layer.mode == "LSTM" else [])]
        return tuple(first.new_zeros(rows, len(first), size) for size in sizes)
    given = tuple(hx) if layer.mode == "LSTM" else (hx,)
    given = given if batched else tuple(s.unsqueeze(1) for s in given)
    return tuple(_permuted(s, packed.sorted_indices if packed else None) for s in given)


def _permuted(state: Tensor, order: Tensor | None) -> Tensor:
    return state if order is None else state.index_select(1, order)


_FUSED: dict[str, Any] = {"RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
_STEPS: dict[str, Step] = {"RNN_TANH": tanh_step, "RNN_RELU": relu_step, "LSTM": lstm_step, "GRU": gru_step}
