"""The learned linear maps: how each computes its output, and its gradients with any weight going back."""

from __future__ import annotations

from dataclasses import dataclass
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

    def gradients(self, delta: Tensor, x: Tensor, F: Tensor, needs: Needs) -> Gradients:
        """Return `(dL/dx, dL/dW, dL/db)`, those that are needed, with `F` in place of `W` in `dL/dx`."""

    def to_middle(self, delta: Tensor, B: Tensor) -> Tensor:
        """Return `B^T delta`, the error in the middle population; `B` is `(groups, N_out/g, N_mid/g)`."""


@dataclass(frozen=True)
class Linear:
    """`y = x W^T + b` with `x` of shape `(*, N_in)` and `W` of shape `(N_out, N_in)`."""

    def __call__(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        """Return `(*, N_out)`."""
        return functional.linear(x, W, b)

    def gradients(self, delta: Tensor, x: Tensor, F: Tensor, needs: Needs) -> Gradients:
        """Return `delta F`, `delta^T x` and the sum of `delta` over the leading dimensions."""
        rows = delta.reshape(-1, delta.shape[-1])
        grad_x = torch.mm(rows, F).reshape(x.shape) if needs[0] else None
        grad_W = torch.mm(rows.t(), x.reshape(-1, x.shape[-1])) if needs[1] else None
        grad_b = rows.sum(0) if needs[2] else None
        return grad_x, grad_W, grad_b

    def to_middle(self, delta: Tensor, B: Tensor) -> Tensor:
        """Return `delta B` of shape `(*, N_mid)`."""
        return torch.matmul(delta, B[0])


@dataclass(frozen=True)
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

    def to_middle(self, delta: Tensor, B: Tensor) -> Tensor:
        """Return `(batch, N_mid, *positions)`: `B^T` applied at every position, group by group."""
        channels = delta.dim() - len(self.stride) - 1
        positions = delta.shape[channels + 1 :]
        grouped = delta.reshape(-1, B.shape[0], B.shape[1], positions.numel())
        middle = torch.matmul(B.transpose(1, 2), grouped)
        return middle.reshape(*delta.shape[:channels], -1, *positions)


_FORWARD = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
