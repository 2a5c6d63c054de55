"""`linear` and `convolution` with a feedback weight, called as torch.nn.functional's are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pfa_convert.feedback.operations import Convolution, Linear, Operation
from pfa_convert.feedback.pathway import Pathway, Tensors
from pfa_convert.feedback.primitive import apply_feedback

_LINEAR = Linear()


class AnyFeedback(Protocol):
    """A FeedbackWeight, or a feedback weight that is computed already."""

    def way(self) -> tuple[Pathway[Any], Tensors]:
        """Return the way of the error, and the state that it reads."""


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, feedback: AnyFeedback | None
) -> Tensor:
    """Return `functional.linear(input, weight, bias)`; the error goes back through `feedback`."""
    return apply_operation(_LINEAR, feedback, input, weight, bias)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    feedback: AnyFeedback | None,
) -> Tensor:
    """Return `functional.convNd(input, weight, ...)`; the error goes back through `feedback`.

    The number of dimensions is the weight's. Padding `'same'` of an even kernel pads the input
    unevenly before the convolution, as PyTorch does.
    """
    dimensions = weight.dim() - 2
    stride, dilation = _each(stride, dimensions), _each(dilation, dimensions)
    if isinstance(padding, str):
        input, padding = _named_padding(input, padding, tuple(weight.shape[2:]), dilation)
    operation = Convolution(stride, _each(padding, dimensions), dilation, groups)
    return apply_operation(operation, feedback, input, weight, bias)


def transposed_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    feedback: AnyFeedback | None,
) -> Tensor:
    """Return `functional.conv_transposeNd(input, weight, ...)`; the error goes back through `feedback`."""
    dimensions = weight.dim() - 2
    operation = Convolution(
        _each(stride, dimensions),
        _each(padding, dimensions),
        _each(dilation, dimensions),
        groups,
        transposed=True,
        output_padding=_each(output_padding, dimensions),
    )
    return apply_operation(operation, feedback, input, weight, bias)


FEEDBACK_CALLS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.linear: linear,
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    torch.conv3d: convolution,
    torch.conv_transpose1d: transposed_convolution,
    torch.conv_transpose2d: transposed_convolution,
    torch.conv_transpose3d: transposed_convolution,
}
"""For each of PyTorch's calls that apply a weight, the one with a feedback weight."""


def apply_operation(
    operation: Operation, feedback: AnyFeedback | None, x: Tensor, W: Tensor, b: Tensor | None
) -> Tensor:
    """Return `operation(x, W, b)`; the error goes back through `feedback`, if there is one."""
    if feedback is None:
        return operation(x, W, b)
    pathway, state = feedback.way()
    return apply_feedback(operation, pathway, x, W, b, state)


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _named_padding(
    x: Tensor, padding: str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    if padding == "valid":
        return x, (0,) * len(kernel)
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(total % 2 for total in totals):
        uneven = [side for total in reversed(totals) for side in (0, total % 2)]
        x = functional.pad(x, uneven)
    return x, tuple(total // 2 for total in totals)
