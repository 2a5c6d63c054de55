"""Layers whose weight PyTorch's parametrizations compute: weight norm, spectral norm, a user's own.

The layer applies `W = g(V)` of its raw weight `V`. As for any computed weight, the feedback state
follows `V`, and the error is sent through `F = g(F_raw)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from pfa_convert.feedback.finding import raw_name
from pfa_convert.feedback.given import GivenFeedback
from pfa_convert.feedback.raw_weight import tap
from pfa_convert.feedback.repeat import repeatable_module
from pfa_convert.feedback.weight import FEEDBACK_ATTRIBUTE, FeedbackWeight


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
    """Return one of the layer's weights as it is now and its feedback weight, from the raw ones.

    Within `torch.nn.utils.parametrize.cached()` both are computed once, and stay until it ends.
    """
    if not torch.is_grad_enabled():
        weight = getattr(layer, name)
        return weight, GivenFeedback(weight)
    if not feedback.pathway.follows_weight:
        return getattr(layer, name), feedback
    chain = layer.parametrizations[name]
    raw = raw_name(chain, feedback.pathway.layout.shape)
    if raw is None:
        return getattr(layer, name), feedback
    if not parametrize._cache_enabled:
        return _computed(chain, raw, feedback)
    cache: dict[Any, Any] = parametrize._cache
    key = id(layer), FEEDBACK_ATTRIBUTE.format(parameter=name)
    if key not in cache:
        cache[key] = _computed(chain, raw, feedback)
        # Reading `layer.weight` has PyTorch keep what the chain returns, under a key that it alone knows.
        chain.forward = lambda: cache[key][0]
        try:
            getattr(layer, name)
        finally:
            del chain.forward
    weight, given = cache[key]
    return weight, given


def _computed(chain: Any, raw: str, feedback: FeedbackWeight) -> tuple[Tensor, GivenFeedback]:
    originals = {original: getattr(chain, original) for original in _originals(chain)}
    V = originals[raw]
    steps = list(_compute(chain, list((originals | {raw: tap(V, feedback)}).values())))
    with torch.no_grad():
        F = list((originals | {raw: feedback.feedback_weight(V)}).values())
        for step in steps:
            F = [_step_of_feedback(step, F)]
    return steps[-1].after, GivenFeedback(F[0])


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


class _Step(NamedTuple):
    """A parametrization that was run: what went into it, what came out, and what repeats it."""

    parametrization: nn.Module
    before: list[Tensor]
    after: Tensor
    again: Callable[..., Any]


def _compute(chain: Any, tensors: list[Tensor]) -> Iterator[_Step]:
    """Run the steps and yield each."""
    for parametrization in _steps(chain):
        again = repeatable_module(parametrization, tensors)
        result = parametrization(*tensors)
        yield _Step(parametrization, tensors, result, again)
        tensors = [result]


def _step_of_feedback(step: _Step, F: Sequence[Tensor]) -> Tensor:
    if not isinstance(step.parametrization, parametrizations._SpectralNorm):
        result: Tensor = step.again(*F)
        return result
    # Its singular vectors are those of V, and change with each call; so F is divided by the same number.
    (V,) = step.before
    return F[0] * ((step.after * V).sum() / V.square().sum())
