"""The report of a converted model as it is now: coupled, frozen, parametrized, layers replaced or added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from pfa_convert.feedback.finding import present_parameter
from pfa_convert.feedback.layers import layer_of
from pfa_convert.feedback.strategy import Strategy
from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.graph.report import ConversionReport, SiteReport
from pfa_convert.graph.sites import (
    OtherUse,
    Skipped,
    feedback_path,
    is_weight,
    joined,
    plain_class,
    weight_path,
)

REPLACED = "replaced after the conversion: it has no feedback weight"
HOOKED = "its weight is no Parameter any more, but computed by a hook"
ADDED = "added after the conversion: it has no feedback weight"


def present_report(model: nn.Module, decided: ConversionReport) -> ConversionReport:
    """Return a conversion's report with what the model's modules are now."""
    found: list[SiteReport | Skipped | OtherUse | None] = []
    found += [one for one in decided.skipped if _exists(model, one.name)]
    found += [one for one in decided.others if _exists(model, one.name)]
    found += [_present_site(model, site) for site in decided.sites]
    found += _added(model, decided)
    return replace(
        decided,
        sites=tuple(one for one in found if isinstance(one, SiteReport)),
        skipped=tuple(dict.fromkeys(one for one in found if isinstance(one, Skipped))),
        others=tuple(one for one in found if isinstance(one, OtherUse)),
    )


def _present_site(model: nn.Module, site: SiteReport) -> SiteReport | Skipped | None:
    """Return a site as it is now; why it is none any more; or None where its module is gone."""
    holder_name, attribute = feedback_path(site.weight)
    holder, owner = _module(model, holder_name), _module(model, site.owner)
    if holder is None or owner is None:
        return None
    feedback = holder._modules.get(attribute)
    if not isinstance(feedback, FeedbackWeight):
        return _without_feedback(model, site)
    if not hasattr(type(owner), "plain_class"):
        return _skipped(model, site, REPLACED)
    parameter = present_parameter(holder, feedback)
    if parameter is None:
        return _skipped(model, site, HOOKED)
    weight = holder.get_parameter(parameter)
    return replace(
        site,
        weight=joined(holder_name, parameter),
        weight_shape=tuple(weight.shape),
        strategy=str(feedback.choice.strategy),
        feedback_elements=feedback.elements if site.feedback_elements else 0,
        frozen=not weight.requires_grad,
    )


def _without_feedback(model: nn.Module, site: SiteReport) -> SiteReport | Skipped | None:
    """Return what became of a site beside which no feedback state lies: never any, as with `bp`, or lost."""
    if site.feedback_elements or site.strategy != Strategy.NATIVE:
        return _skipped(model, site, REPLACED) if _exists(model, weight_path(site.weight)) else None
    path = site.weight if _exists(model, site.weight) else weight_path(site.weight)
    holder, _, name = path.rpartition(".")
    weight = getattr(model.get_submodule(holder), name, None)
    if not isinstance(weight, nn.Parameter):
        return None
    return replace(site, weight=path, weight_shape=tuple(weight.shape), frozen=not weight.requires_grad)


def _skipped(model: nn.Module, site: SiteReport, reason: str) -> Skipped:
    holder, _, name = weight_path(site.weight).rpartition(".")
    module = model.get_submodule(holder)
    shape = getattr(getattr(module, name, None), "shape", ())
    return Skipped(site.name, plain_class(module).__name__, tuple(shape), reason)


def _added(model: nn.Module, decided: ConversionReport) -> Iterator[Skipped | OtherUse]:
    """Yield the weights that the conversion did not see."""
    names = [site.weight for site in decided.sites]
    names += [one.name for one in decided.skipped] + [other.name for other in decided.others]
    known = {weight_path(name) for name in names}
    inside = tuple(f"{one.name}." for one in decided.skipped)
    for holder_name, holder in model.named_modules():
        if isinstance(holder, FeedbackWeight):
            continue
        for own, parameter in holder.named_parameters(recurse=False):
            name = weight_path(joined(holder_name, own))
            if not is_weight(parameter) or name in known or name.startswith(inside):
                continue
            known.add(name)
            if layer_of(holder) is not None:
                yield Skipped(name, plain_class(holder).__name__, tuple(parameter.shape), ADDED)
            else:
                yield OtherUse(name, tuple(parameter.shape), "added after the conversion")


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _exists(model: nn.Module, path: str) -> bool:
    """Say whether a module, a Parameter or a computed weight has this name."""
    holder, _, name = path.rpartition(".")
    module = _module(model, holder)
    return module is not None and (not path or hasattr(module, name))
