"""How well the error is aligned: the path angle of each site, and the angle of its weight gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.convert import revert
from pfa_convert.errors import UserError
from pfa_convert.feedback.weight import FeedbackWeight, whole
from pfa_convert.graph.report import ConversionReport
from pfa_convert.graph.sites import feedback_path


@torch.no_grad()
def alignment(converted: nn.Module) -> dict[str, dict[str, float]]:
    """Return `{site: {"angle_deg", "norm_ratio"}}` of each site's feedback weight `F` against `W`.

    The angle is that between `F` and `W` as vectors, in degrees (the paper's path alignment); the ratio
    is `|F| / |W|`. Sites with the rule `bp` have angle 0 and ratio 1; those whose feedback comes from the
    model's output are left out, since their `F` does not stand beside `W`.

    Raises:
        UserError: if the model is not a converted one.

    Examples:
        >>> from pfa_convert import convert
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> found = alignment(convert(nn.Sequential(nn.Linear(100, 100)), "usf"))
        >>> 20 < found["0"]["angle_deg"] < 40  # a uniform weight and its signs: 30 degrees
        True
    """
    result = {}
    with torch.random.fork_rng():
        for site in report_of(converted).sites:
            W = whole(converted.get_parameter(site.weight))
            feedback = feedback_of(converted, site.weight)
            if feedback is not None and not feedback.pathway.follows_weight:
                continue
            F = W if feedback is None else feedback.feedback_weight(W)
            ratio = (F.norm() / W.norm()).item() if W.norm() > 0 else math.nan
            result[site.name] = {"angle_deg": angle(F, W), "norm_ratio": ratio}
    return result


def gradient_angles(
    converted: nn.Module, loss_fn: Callable[[Any, Any], Tensor], inputs: Any, targets: Any
) -> dict[str, float]:
    """Return, for each site, the angle in degrees between its `dL/dW` and backpropagation's.

    Both gradients are taken on one batch, from the same weights, the same state of BatchNorm and the
    same random numbers; the model's own gradients and buffers are left as they were.
    """
    sites = report_of(converted).sites
    own = _weight_gradients(converted, [s.weight for s in sites], loss_fn, inputs, targets)
    # A copy of the modules but not of what they hold: that may be gigabytes of feedback weights.
    feedback = (module for module in converted.modules() if isinstance(module, FeedbackWeight))
    held = {id(one): one for one in (*converted.parameters(), *converted.buffers(), *feedback)}
    plain = revert(copy.deepcopy(converted, held), inplace=True)
    true = _weight_gradients(plain, [s.weight for s in sites], loss_fn, inputs, targets)
    return {site.name: angle(own[site.weight], true[site.weight]) for site in sites}


def report_of(converted: nn.Module) -> ConversionReport:
    """Return the model's ConversionReport; raises UserError if it has none."""
    report = getattr(converted, "conversion", None)
    if not isinstance(report, ConversionReport):
        raise UserError("the model is not a converted one: it has no attribute 'conversion'")
    return report


def feedback_of(converted: nn.Module, weight: str) -> FeedbackWeight | None:
    """Return the feedback state of the weight with this name; None where the rule is `bp`."""
    holder, name = feedback_path(weight)
    found = getattr(converted.get_submodule(holder), name, None)
    return found if isinstance(found, FeedbackWeight) else None


def angle(a: Tensor, b: Tensor) -> float:
    """Return the angle between two tensors as vectors, in degrees; nan if one of them is zero.

    Uses `2 atan2(|a' - b'|, |a' + b'|)` of the unit vectors, which keeps its precision near 0 and 180.
    """
    a, b = a.detach().double().flatten(), b.detach().double().flatten()
    if not a.norm() or not b.norm():
        return math.nan
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))


def _weight_gradients(
    model: nn.Module, names: list[str], loss_fn: Callable[[Any, Any], Tensor], inputs: Any, targets: Any
) -> dict[str, Tensor]:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = {name: model.get_parameter(name) for name in names}
    learned = {name: weight for name, weight in weights.items() if weight.requires_grad}
    with torch.random.fork_rng(), torch.enable_grad():
        loss = loss_fn(model(inputs), targets)
        found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    gradients = dict(zip(learned, found, strict=True))
    return {
        name: torch.zeros_like(weight) if gradients.get(name) is None else gradients[name]
        for name, weight in weights.items()
    }
