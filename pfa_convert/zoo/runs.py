"""Running a model for its proof: inputs that it takes, weights that no error stops at, its gradients."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pfa_convert.comparison import run_once, undisturbed
from pfa_convert.models import example

SMALL_SIZES = (64, 128, 192, None)
"""Sizes of image to try, in pixels; None is the model's own."""


def smallest_inputs(name: str, plain: nn.Module) -> tuple[int | None, Any]:
    """Return the first small inputs that the plain model takes in both modes, with finite outputs.

    A model is only ever run as a copy: some keep what they computed, and cannot be copied then.
    """
    plain = copy.deepcopy(plain)
    for size in SMALL_SIZES:
        inputs = example(name, size)
        try:
            outputs = [run_once(plain, training, inputs) for training in (True, False)]
        except Exception:
            if size is None:
                raise
            continue
        if size is None or all(bool(o.isfinite().all()) for o in differentiable(outputs)):
            return size, inputs
    raise AssertionError("the last size returns or raises")


@torch.no_grad()
def without_zeros(model: nn.Module) -> None:
    """Move gains, biases and what starts at zero: behind a zero, no error would arrive to be compared."""
    for parameter in model.parameters():
        if parameter.dim() < 2 or not parameter.any():
            parameter.add_(0.05 * torch.randn_like(parameter))


def gradients(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Return the gradient of each Parameter that gets one, from a run in training."""
    model.zero_grad()
    with undisturbed(model, training=True):
        loss(model(*inputs)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def loss(outputs: Any) -> Tensor:
    """Return a sum of the outputs with fixed random weights, so that no error cancels."""
    generator = torch.Generator().manual_seed(1)
    terms = []
    for output in differentiable(outputs):
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
        terms.append((output * weights).nan_to_num(0, 0, 0).mean())
    return torch.stack(terms).sum()


def differentiable(outputs: Any) -> list[Tensor]:
    """Return the outputs that record gradients."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]


def with_gradients(inputs: Any) -> Any:
    """Return the inputs with images that record gradients."""
    images, *others = inputs
    return tree_map(lambda image: image.clone().requires_grad_(), images), *others


def double(leaf: Any) -> Any:
    """Return a floating-point tensor in float64, and anything else as it is."""
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def single(leaf: Any) -> Any:
    """Return a floating-point tensor in float32, and anything else as it is."""
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
