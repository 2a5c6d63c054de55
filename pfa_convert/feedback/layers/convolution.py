"""`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`: of any stride, padding, padding mode, dilation and groups."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pfa_convert.feedback.functional import convolution
from pfa_convert.feedback.layers.base import LAYERS, AppliedWeight


@LAYERS.register(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution_layer(layer: Any, weight: AppliedWeight, input: Tensor) -> Tensor:
    """Return `(batch, N_out, *positions)` for `(batch, N_in, *positions)`, or the same without a batch."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        input = functional.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    return convolution(
        input,
        weight.value,
        layer.bias,
        layer.stride,
        padding,
        layer.dilation,
        layer.groups,
        feedback=weight.feedback,
    )
