"""Layers whose weight PyTorch's parametrizations compute: weight norm, spectral norm, a user's own.

The layer applies `W = g(V)` of its raw weight `V`. As for any computed weight, the feedback state
follows `V`, and the error is sent through `F = g(F_raw)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pfa_convert.feedback.finding import raw_name
from pfa_convert.feedback.redirect import GivenFeedback, tap
from pfa_convert.feedback.weight import FeedbackWeight


def is_computed(layer: nn.Module, name: str) -> bool:
    """Say whether one of the layer's weights is parametrized at present."""
    chains = layer._modules.get("parametrizations")
    return chains is not None and name in chains._modules


def raw_weight(layer: nn.Module, name: str = "weight") -> str:
    """Return the path, from the layer, of the raw weight: the one with the shape of the layer's weight.

    Weight norm has two Parameters, the norms and the direction; the direction is the raw weight. Where
    none has the shape, the answer is the name of the computed weight, which no Parameter has.
    """
    chain: Any = layer.parametrizations[name]  # type: ignore[index]
    fitting = raw_name(chain, _shape(layer, name, chain))
    return f"parametrizations.{name}.{fitting}" if fitting else name


def parametrized_weight(
    layer: Any, name: str, feedback: FeedbackWeight
) -> tuple[Tensor, GivenFeedback | FeedbackWeight]:
    """Return one of the layer's weights as it is now and its feedback weight, from the raw ones."""
    if not torch.is_grad_enabled():
        weight = getattr(layer, name)
        return weight, GivenFeedback(weight)
    if not feedback.pathway.follows_weight:
        return getattr(layer, name), feedback
    chain = layer.parametrizations[name]
    raw = raw_name(chain, feedback.pathway.layout.shape)
    if raw is None:
        return getattr(layer, name), feedback
    originals = {original: getattr(chain, original) for original in _originals(chain)}
    V = originals[raw]
    steps = list(_compute(chain, list((originals | {raw: tap(V, feedback)}).values())))
    with torch.no_grad():
        F = list((originals | {raw: feedback.feedback_weight(V)}).values())
        for step, (before, after) in zip(_steps(chain), steps, strict=True):
            F = [_step_of_feedback(step, F, before, after)]
    return steps[-1][1], GivenFeedback(F[0])


def _shape(layer: nn.Module, name: str, chain: nn.Module) -> torch.Size:
    """Return the shape of a layer's weight; in training mode, spectral norm would change its buffers."""
    modes = {step: step.training for step in chain.modules()}
    chain.eval()
    with torch.no_grad():
        shape: torch.Size = getattr(layer, name).shape
    for step, mode in modes.items():
        step.training = mode
    return shape


def _originals(chain: Any) -> list[str]:
    return ["original"] if chain.is_tensor else [f"original{index}" for index in range(chain.ntensors)]


def _steps(chain: Any) -> Iterator[nn.Module]:
    index = 0
    while hasattr(chain, str(index)):
        yield getattr(chain, str(index))
        index += 1


def _compute(chain: Any, tensors: list[Tensor]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield what goes into each step and what comes out."""
    for step in _steps(chain):
        result = step(*tensors)
        yield tensors, result
        tensors = [result]


def _step_of_feedback(
    step: nn.Module, F: Sequence[Tensor], before: Sequence[Tensor], after: Tensor
) -> Tensor:
    if not isinstance(step, parametrizations._SpectralNorm):
        result: Tensor = step(*F)
        return result
    # Its singular vectors are those of V, and change with each call; so F is divided by the same number.
    (V,) = before
    return F[0] * ((after * V).sum() / V.square().sum())
