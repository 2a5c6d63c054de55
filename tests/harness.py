"""Layers of every shape, and their gradients by the literal definition: PyTorch's own autograd, twice.

`dL/dW` and `dL/db` are those of the plain layer; `dL/dx` is that of the plain layer with `F` as its
weight. Neither uses anything of the package.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EXACT = 1e-12
"""Relative error in float64; sums of a few hundred products round at 1e-15 or so each."""


@dataclass(frozen=True)
class Case:
    name: str
    layer: nn.Module
    input_shape: tuple[int, ...]


def cases() -> list[Case]:
    torch.manual_seed(0)
    return [
        Case("linear", nn.Linear(7, 5), (4, 7)),
        Case("linear no bias, 4-D", nn.Linear(7, 5, bias=False), (2, 3, 4, 7)),
        Case("linear, one vector", nn.Linear(7, 5), (7,)),
        Case("conv1d dilated", nn.Conv1d(4, 6, 3, dilation=2, padding=1), (2, 4, 11)),
        Case("conv1d same, even kernel", nn.Conv1d(4, 6, 4, padding="same", groups=2), (2, 4, 11)),
        Case("conv1d without batch, circular", nn.Conv1d(4, 6, 3, 2, 1, padding_mode="circular"), (4, 11)),
        Case("conv2d", nn.Conv2d(3, 8, 3, padding=1), (2, 3, 7, 6)),
        Case("conv2d stride 2, no bias", nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (2, 3, 9, 8)),
        Case("conv2d groups", nn.Conv2d(6, 9, 3, groups=3, padding=(1, 0)), (2, 6, 7, 7)),
        Case("conv2d depthwise", nn.Conv2d(4, 4, 3, groups=4, stride=2), (2, 4, 9, 9)),
        Case("conv2d depthwise, two each", nn.Conv2d(4, 8, (3, 1), groups=4, dilation=(2, 1)), (2, 4, 9, 9)),
        Case("conv2d reflect", nn.Conv2d(3, 5, 3, padding=2, padding_mode="reflect"), (2, 3, 7, 6)),
        Case(
            "conv2d replicate",
            nn.Conv2d(4, 6, 3, 2, (2, 1), (1, 2), 2, padding_mode="replicate"),
            (2, 4, 7, 9),
        ),
        Case("conv2d circular", nn.Conv2d(3, 5, 3, padding=(1, 2), padding_mode="circular"), (2, 3, 7, 6)),
        Case("conv2d same", nn.Conv2d(3, 5, (3, 5), padding="same"), (2, 3, 8, 9)),
        Case(
            "conv2d same, even kernel", nn.Conv2d(3, 5, (4, 3), padding="same", dilation=(1, 2)), (2, 3, 8, 9)
        ),
        Case(
            "conv2d same, reflect", nn.Conv2d(3, 5, 4, padding="same", padding_mode="reflect"), (2, 3, 8, 9)
        ),
        Case(
            "conv2d same, replicate",
            nn.Conv2d(3, 5, 2, padding="same", padding_mode="replicate"),
            (2, 3, 8, 9),
        ),
        Case("conv2d same, without batch", nn.Conv2d(3, 5, (2, 3), padding="same", bias=False), (3, 8, 9)),
        Case("conv2d valid", nn.Conv2d(3, 5, 3, padding="valid"), (2, 3, 8, 9)),
        Case("conv2d without batch", nn.Conv2d(3, 5, 3), (3, 8, 9)),
        Case("conv3d", nn.Conv3d(2, 4, (1, 3, 2), stride=(1, 2, 1), groups=2), (2, 2, 3, 7, 6)),
        Case(
            "conv3d same",
            nn.Conv3d(2, 3, (2, 3, 1), padding="same", padding_mode="circular"),
            (1, 2, 4, 5, 3),
        ),
        Case("transposed 1d", nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 7)),
        Case(
            "transposed 2d groups", nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2), (2, 6, 5, 4)
        ),
        Case("transposed 2d depthwise", nn.ConvTranspose2d(4, 8, 2, 2, groups=4), (2, 4, 3, 4)),
        Case("transposed 2d without batch", nn.ConvTranspose2d(3, 4, (3, 2), dilation=(1, 2)), (3, 5, 4)),
        Case("transposed 3d", nn.ConvTranspose3d(3, 2, 2, dilation=2, bias=False), (2, 3, 3, 4, 3)),
    ]


def gradients(layer: nn.Module, x: Tensor, delta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `dL/dx` and the parameters' gradients of a layer by autograd."""
    layer = copy.deepcopy(layer).double()
    x = x.clone().requires_grad_()
    layer(x).backward(delta)
    return x.grad, {name: p.grad for name, p in layer.named_parameters()}


def literal(layer: nn.Module, F: Tensor, x: Tensor, delta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the gradients that a layer with feedback weight `F` should have."""
    through_F = copy.deepcopy(layer).double()
    with torch.no_grad():
        through_F.weight.copy_(F)
    return gradients(through_F, x, delta)[0], gradients(layer, x, delta)[1]


def problem(case: Case) -> tuple[Tensor, Tensor]:
    """Return an input and an error for a case, in float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(case.input_shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        shape = copy.deepcopy(case.layer).double()(x).shape
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)


def relative_error(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-300)).item()


def feedback_of(module, name="weight"):
    return getattr(module, f"feedback_of_{name}")


def error_below(model, x, delta=None):
    x = x.clone().requires_grad_()
    output = model(x)
    output.backward(torch.ones_like(output) if delta is None else delta)
    return x.grad
