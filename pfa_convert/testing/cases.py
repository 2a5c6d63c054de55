"""Layers of every shape, with inputs: what a rule has to be right for."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A layer and the shape of an input of its own."""

    name: str
    layer: nn.Module
    input_shape: tuple[int, ...]


def cases() -> list[Case]:
    """Return linear layers and convolutions of every kind, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _cases()


def _cases() -> list[Case]:
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


def problem(case: Case) -> tuple[Tensor, Tensor]:
    """Return an input and an error for a case, in float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(case.input_shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        shape = copy.deepcopy(case.layer).double()(x).shape
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)
