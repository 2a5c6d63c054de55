"""Gradients by the literal definition: PyTorch's own autograd, twice.

`dL/dW` and `dL/db` are those of the plain layer; `dL/dx` is that of the plain layer with `F` as its
weight. Nothing of the rest of the package is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

EXACT = 1e-12
"""Relative error in float64; sums of a few hundred products round at 1e-15 or so each."""


def gradients(layer: nn.Module, x: Tensor, delta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `dL/dx` and the parameters' gradients of a layer by autograd."""
    layer = copy.deepcopy(layer).double()
    x = x.clone().requires_grad_()
    layer(x).backward(delta)
    assert x.grad is not None
    return x.grad, {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


def literal(layer: nn.Module, F: Tensor, x: Tensor, delta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the gradients that a layer with feedback weight `F` should have."""
    through_F = copy.deepcopy(layer).double()
    with torch.no_grad():
        through_F.get_parameter("weight").copy_(F)
    return gradients(through_F, x, delta)[0], gradients(layer, x, delta)[1]


def through(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, W: Tensor, F: Tensor) -> Tensor:
    """Return `product(x, W)`, whose error goes back to `x` through `F`: one's value, another's derivative.

    `product` is linear in both, such as `torch.nn.functional.linear`.
    """
    back = product(x, F.detach())
    return product(x.detach(), W) + (back - back.detach())


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return `|a - b| / |b|`."""
    return ((a - b).norm() / b.norm().clamp_min(1e-300)).item()
