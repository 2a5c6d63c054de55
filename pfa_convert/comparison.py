"""Checks that a conversion did what it says, on a plain and a converted copy of one model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def forward_difference(plain: nn.Module, converted: nn.Module, *inputs: Any) -> float:
    """Return the largest difference between the two models' outputs, in training and evaluation mode.

    Both draw the same random numbers and start from the same buffers, which are put back afterwards.
    Gradients are recorded, so that the converted model runs its feedback operations.
    """
    return max(
        largest_difference(run_once(converted, training, inputs), run_once(plain, training, inputs))
        for training in (True, False)
    )


def largest_difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference between tensors nested alike; infinite where only one is nan."""
    largest = 0.0
    for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        if isinstance(a, Tensor) and not torch.equal(a, b):
            difference = (a.double() - b.double()).abs().nan_to_num(0.0)
            same_nan = torch.equal(a.isnan(), b.isnan())
            largest = max(largest, difference.max().item() if same_nan else math.inf)
    return largest


def run_once(model: nn.Module, training: bool, inputs: tuple[Any, ...]) -> Any:
    """Return `model(*inputs)` in the mode asked for, and leave the model as it was."""
    with undisturbed(model, training):
        return model(*inputs)


@contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Run a block with the model in a mode, gradients recorded, from a fixed seed.

    Modes, buffers and random numbers are put back at the end; so a backward pass belongs in the block.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        try:
            model.train(training)
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, mode in modes.items():
                module.training = mode
