"""The learned linear maps: how each computes its output, and its gradients with any weight going back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
Needs = tuple[bool, bool, bool]


class Operation(Protocol):
    """A map `y = op(x, W) + b` that is linear in `x` and in `W`."""

    def __call__(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Return the output, computed by the very call that the plain layer makes."""

    def shape_of(self, x: Tensor) -> Tensor:
        """Return what stands for `x` in the backward pass where the weight is frozen."""

    def gradients(self, delta: Tensor, x: Tensor, F: Tensor, needs: Needs) -> Gradients:
        """Return `(dL/dx, dL/dW, dL/db)`, those that are needed, with `F` in place of `W` in `dL/dx`."""

    def broadcast(self, e: Tensor, F: Tensor, delta: Tensor, x: Tensor) -> Tensor:
        """Return `F e` of the shape of `x`, with the error `e` of the output at every position of `delta`."""

    def to_middle(self, delta: Tensor, B: Tensor) -> Tensor:
        """Return `B^T delta`, the error in the middle population; `B` is `(groups, N_out/g, N_mid/g)`."""


@dataclass(frozen=True)
class Linear:
    """`y = x W^T + b` with `x` of shape `(*, N_in)` and `W` of shape `(N_out, N_in)`, or `(N_in,)`."""

    def __call__(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Return `(*, N_out)`, or `(*)`."""
        return functional.linear(x, W, b)

    def shape_of(self, x: Tensor) -> Tensor:
        """Return one number, as often as `x` has entries."""
        return repeated_number(x)

    def gradients(self, delta: Tensor, x: Tensor, F: Tensor, needs: Needs) -> Gradients:
        """Return `delta F`, `delta^T x` and the sum of `delta` over the leading dimensions."""
        if F.dim() == 1:  # one output, without a dimension of its own
            grad_x, grad_W, grad_b = self.gradients(delta.unsqueeze(-1), x, F.unsqueeze(0), needs)
            return grad_x, None if grad_W is None else grad_W[0], None if grad_b is None else grad_b[0]
        rows = delta.reshape(-1, delta.shape[-1])
        grad_x = torch.mm(rows, F).reshape(x.shape) if needs[0] else None
        grad_W = torch.mm(rows.t(), x.reshape(-1, x.shape[-1])) if needs[1] else None
        grad_b = rows.sum(0) if needs[2] else None
        return grad_x, grad_W, grad_b

    def broadcast(self, e: Tensor, F: Tensor, delta: Tensor, x: Tensor) -> Tensor:
        """Return `e F`, the same for every position of an example; `F` is `(N_e, N_in)`."""
        below = torch.mm(rows_of_examples(e, len(x) if x.dim() > 1 else 1), F)
        return below.reshape(*below.shape[:1], *(1,) * (x.dim() - 2), F.shape[1]).expand(x.shape)

    def to_middle(self, delta: Tensor, B: Tensor) -> Tensor:
        """Return `delta B` of shape `(*, N_mid)`."""
        return torch.matmul(delta, B[0])


@dataclass  # not frozen: PyTorch 2.11 compiles no function that makes a frozen one and calls it
class Convolution:
    """ConvNd or ConvTransposeNd with numeric padding of zeros; every field has one entry per dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __call__(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Return `(batch, N_out, *positions)`, or the same without a batch for such an `x`."""
        dimensions = len(self.stride) - 1
        if self.transposed:
            transposed: Any = _TRANSPOSED[dimensions]
            return transposed(
                x, W, b, self.stride, self.padding, self.output_padding, self.groups, self.dilation
            )
        forward: Any = _FORWARD[dimensions]
        return forward(x, W, b, self.stride, self.padding, self.dilation, self.groups)

    def shape_of(self, x: Tensor) -> Tensor:
        """Return `x` itself, as PyTorch keeps it: its order in memory decides on that of `dL/dx`."""
        return x

    def gradients(self, delta: Tensor, x: Tensor, F: Tensor, needs: Needs) -> Gradients:
        """Return all gradients from one fused call; only `dL/dx` reads the values of `F`."""
        unbatched = x.dim() == len(self.stride) + 1
        if unbatched:
            delta, x = delta.unsqueeze(0), x.unsqueeze(0)
        grad_x, grad_W, grad_b = torch.ops.aten.convolution_backward(
            delta,
            x,
            F,
            [delta.shape[1]] if needs[2] else None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding or (0,) * len(self.stride),
            self.groups,
            needs,
        )
        return (grad_x.squeeze(0) if unbatched and grad_x is not None else grad_x), grad_W, grad_b

    def broadcast(self, e: Tensor, F: Tensor, delta: Tensor, x: Tensor) -> Tensor:
        """Return what the convolution without groups sends down; `F` is `(N_e, N_in, *k)`."""
        positions = delta.shape[-len(self.stride) :]
        batched = delta.dim() > len(self.stride) + 1
        rows = rows_of_examples(e, len(x) if batched else 1)
        spread = rows.reshape(*rows.shape, *(1,) * len(positions)).expand(*rows.shape, *positions)
        whole = replace(self, groups=1)
        below, _, _ = whole.gradients(
            spread.to(x.dtype) if batched else spread[0].to(x.dtype), x, F, (True, False, False)
        )
        assert below is not None
        return below

    def to_middle(self, delta: Tensor, B: Tensor) -> Tensor:
        """Return `(batch, N_mid, *positions)`: `B^T` applied at every position, group by group."""
        channels = delta.dim() - len(self.stride) - 1
        positions = delta.shape[channels + 1 :]
        if positions.numel() == len(B) == 1:
            # One product for all examples; below it would be one for each.
            middle = torch.mm(delta.reshape(-1, B.shape[1]), B[0])
            return middle.reshape(*delta.shape[:channels], -1, *positions)
        grouped = delta.reshape(-1, B.shape[0], B.shape[1], positions.numel())
        middle = torch.matmul(B.transpose(1, 2), grouped)
        return middle.reshape(*delta.shape[:channels], B.shape[0] * B.shape[2], *positions)


@dataclass  # not frozen, as Convolution
class MatrixProduct:
    """`y = x @ W` or, with `left`, `y = W @ x`, as `torch.matmul` defines them, plus `b` for `addmm`.

    `call` is the function of PyTorch's that the plain model calls: `matmul`, `mm`, `bmm`, `addmm`, ...
    `stack` is the shape of a `W` of several matrices without their own two dimensions.
    """

    call: Any
    left: bool = False
    stack: tuple[int, ...] = ()

    def __call__(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Return the product, computed by the very call that the plain model makes."""
        operands = (W, x) if self.left else (x, W)
        result: Tensor = self.call(*operands) if b is None else self.call(b, *operands)
        return result

    def shape_of(self, x: Tensor) -> Tensor:
        """Return one number, as often as `x` has entries."""
        return repeated_number(x)

    def gradients(self, delta: Tensor, x: Tensor, F: Tensor, needs: Needs) -> Gradients:
        """Return `delta F^T` (or `F^T delta`), `x^T delta` (or `delta x^T`) and the sum of `delta`.

        Each is summed over the dimensions that were broadcast; `b` is `(N_out,)`.
        """
        first, second = (F, x) if self.left else (x, F)
        spread = delta.unsqueeze(-1) if second.dim() == 1 else delta
        spread = spread.unsqueeze(-2) if first.dim() == 1 else spread
        row, column = (t.unsqueeze(d) if t.dim() == 1 else t for t, d in ((first, 0), (second, 1)))
        of_first, of_second = needs[:2] if not self.left else (needs[1], needs[0])
        grads: list[Tensor | None] = [None, None]
        if of_first:
            grads[0] = _summed(spread, column.mH, row.shape).reshape(first.shape)
        if of_second:
            grads[1] = _summed(row.mH, spread, column.shape).reshape(second.shape)
        if self.left:
            grads.reverse()
        return grads[0], grads[1], delta.reshape(-1, delta.shape[-1]).sum(0) if needs[2] else None

    def broadcast(self, e: Tensor, F: Tensor, delta: Tensor, x: Tensor) -> Tensor:
        """Return `F e` where the product is a linear map of rows; no other layout comes here."""
        return Linear().broadcast(e, F, delta, x)

    def to_middle(self, delta: Tensor, B: Tensor) -> Tensor:
        """Return `B^T delta` for each matrix of the weight; `B` is `(groups, N_out, N_mid)`."""
        B = B.reshape(*self.stack, *B.shape[1:])  # sizes of 1 stay, so that it broadcasts as the weight does
        missing = -1 if self.left else -2
        of_vector = delta.dim() < B.dim()  # `x` is `(N_in,)`, and the error lacks its other dimension
        error = delta.unsqueeze(missing) if of_vector else delta
        middle = torch.matmul(B.mT, error) if self.left else torch.matmul(error, B)
        return middle.squeeze(missing) if of_vector else middle


def repeated_number(x: Tensor) -> Tensor:
    """Return a tensor of the shape and kind of `x` with the memory of one number."""
    return x.new_zeros(()).expand(x.shape)


def _summed(first: Tensor, second: Tensor, shape: torch.Size) -> Tensor:
    """Return `first @ second`, summed over leading dimensions down to `shape`."""
    if len(shape) == 2 and first.dim() > 2 and first.shape[:-2] == second.shape[:-2]:
        # One product over the rows of all matrices, instead of a sum of many.
        return torch.mm(first.movedim(-2, 0).flatten(1), second.movedim(-1, 0).flatten(1).t())
    return torch.matmul(first, second).sum_to_size(shape)


def rows_of_examples(e: Tensor, rows: int) -> Tensor:
    """Return the error for each of a layer's rows, `(rows, N_e)`.

    A layer may have several rows to an example, next to each other (windows of an image), or one that all
    examples share (a table of positions), which gets the sum of their errors.

    Raises:
        RuntimeError: for any other number of rows.
    """
    if rows == len(e):
        return e
    if len(e) and rows % len(e) == 0:
        return e.repeat_interleave(rows // len(e), dim=0)
    if rows == 1:
        return e.sum(0, keepdim=True)
    raise RuntimeError(
        f"a layer with direct feedback has {rows} rows for {len(e)} examples: its input must begin with the "
        "batch; give the layer another rule"
    )


_FORWARD = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
