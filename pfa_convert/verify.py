"""Checks that a conversion did what it says, on a plain and a converted copy of one model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def forward_difference(plain: nn.Module, converted: nn.Module, inputs: Any) -> float:
    """Return the largest difference between the two models' outputs, in training and evaluation mode.

    Both draw the same random numbers and start from the same buffers, which are put back afterwards.
    Gradients are recorded, so that the converted model runs its feedback operations.
    """
    largest = 0.0
    for training in (True, False):
        outputs = [_output(model, training, inputs) for model in (plain, converted)]
        for ours, theirs in zip(*map(tree_leaves, outputs), strict=True):
            if isinstance(ours, Tensor):
                difference = (ours.double() - theirs.double()).abs().nan_to_num()
                same_nan = torch.equal(ours.isnan(), theirs.isnan())
                largest = max(largest, difference.max().item() if same_nan else math.inf)
    return largest


def _output(model: nn.Module, training: bool, inputs: Any) -> Any:
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        try:
            output = model.train(training)(inputs)
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, mode in modes.items():
                module.training = mode
    return output
