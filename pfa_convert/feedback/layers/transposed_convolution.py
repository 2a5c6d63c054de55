"""`nn.ConvTranspose1d`, `nn.ConvTranspose2d`, `nn.ConvTranspose3d`: weights `(N_in, N_out/groups, *k)`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pfa_convert.feedback.functional import transposed_convolution
from pfa_convert.feedback.layers.base import LAYERS, AppliedWeight
from pfa_convert.feedback.layout import WeightLayout


def transposed_layout(layer: Any, weight: Tensor) -> WeightLayout:
    """Return the layout of a weight `(N_in, N_out/groups, *k)`."""
    return WeightLayout(tuple(weight.shape), layer.groups, transposed=True)


@LAYERS.register(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, layout=transposed_layout)
def transposed_convolution_layer(
    layer: Any, weight: AppliedWeight, input: Tensor, output_size: list[int] | None = None
) -> Tensor:
    """Return `(batch, N_out, *positions)` for `(batch, N_in, *positions)`, or the same without a batch."""
    output_padding = layer._output_padding(
        input,
        output_size,
        layer.stride,
        layer.padding,
        layer.kernel_size,
        len(layer.kernel_size),
        layer.dilation,
    )
    return transposed_convolution(
        input,
        weight.value,
        layer.bias,
        layer.stride,
        layer.padding,
        output_padding,
        layer.groups,
        layer.dilation,
        feedback=weight.feedback,
    )
