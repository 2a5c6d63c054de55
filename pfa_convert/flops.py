"""The floating-point operations of a training step, as far as PyTorch counts them right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

aten = torch.ops.aten


def _convolution_backward(
    gradient: Sequence[int],
    x: Sequence[int],
    W: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """Count the gradients of input and weight that are wanted, each as much as the forward."""
    return sum(wanted[:2]) * conv_flop_count(list(x), list(W), list(gradient), transposed=transposed)


OPERATIONS: dict[Any, Callable[..., int]] = {
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
}
"""By operation on the shapes of its arguments, where PyTorch's own count is another: it takes the weight's
gradient of a grouped convolution `groups` times, and knows attention on a GPU only."""


def flops_of(step: Callable[[], Any]) -> int:
    """Return the floating-point operations of the matrix products, convolutions and attention in a call."""
    with FlopCounterMode(display=False, custom_mapping=OPERATIONS) as counter:
        step()
    return int(counter.get_total_flops())
