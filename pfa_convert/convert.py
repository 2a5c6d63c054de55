"""From a model to the converted model, and back: the story from top to bottom."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from pfa_convert.errors import UserError
from pfa_convert.feedback.uncoupled import UncoupledWatch
from pfa_convert.feedback.weight import FEEDBACK_ATTRIBUTE, FeedbackWeight
from pfa_convert.graph.discover import NOT_REACHED, Discovery, discover
from pfa_convert.graph.example import Example, add_sites, discover_by_example, from_plain, to_plain
from pfa_convert.graph.overrides import Decision, decide, listed
from pfa_convert.graph.report import ConversionReport, OtherUse, SiteReport
from pfa_convert.graph.rewrite import (
    restore,
    rewrite_layer,
    rewrite_owner,
    tap_output,
    unroll_recurrent,
)
from pfa_convert.graph.root import make_root, refuse_converted
from pfa_convert.graph.sites import Site, Skipped, feedback_path
from pfa_convert.graph.subclass import change_class, with_wrapped_method
from pfa_convert.graph.trace import is_weight
from pfa_convert.rules.draw import Draw
from pfa_convert.seeds import derived_seed

M = TypeVar("M", bound=nn.Module)


def convert(
    model: M,
    rule: str = "pfa",
    *,
    options: Mapping[str, Any] | None = None,
    overrides: Iterable[Mapping[str, Any]] | Mapping[str, Any] = (),
    seed: int = 0,
    inplace: bool = False,
    reinit: str | None = None,
    example: Example | Sequence[Mapping[str, Any]] | None = None,
    strict: bool = False,
    unroll: bool = False,
) -> M:
    """Return the model with the error of every linear map and convolution sent through feedback weights.

    The forward is unchanged to the last bit; parameters keep their names, and a plain checkpoint loads.

    Args:
        model: any module; its own forwards are traced by torch.fx, one module at a time.
        rule: the rule of every site that no override matches, such as `pfa` or `fa`.
        options: the rule's options, such as `{"expansion": 10}`.
        overrides: for some layers another rule or other options, the first match wins:
            `{"match": "layer4.*", "rule": "bp"}` (a glob, or `re:` and a regular expression), or
            `{"type": "Conv2d", "kernel_size": 1, "rule": "usf"}`. A mapping `{"fc": "bp"}` is short for
            patterns with a rule each.
        seed: what the feedback weights are drawn from, together with each weight's name.
        inplace: convert the given model itself, not a copy.
        reinit: `xavier_uniform` draws the weights anew as the paper does; None keeps them.
        example: `(args, kwargs)` of one call of the model. A run with it, on a copy, finds the weights that
            code applies which tracing cannot follow; what it found is in the report's settings, and can be
            given instead.
        unroll: run `nn.LSTM`, `nn.GRU` and `nn.RNN` step by step, so that their weights are sites too. Their
            outputs then are the fused operation's up to rounding. Without it they are skipped.
        strict: raise if a learned weight is skipped, or no forward that could be followed uses it.

    Returns:
        The converted model; its attribute `conversion` is the ConversionReport of the model as it then is.

    Raises:
        UserError: for an unknown rule or option, an override that matches nothing, a model that is
            converted already as a whole or in part, or, if `strict`, weights that get no rule.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> converted = convert(model, "pfa", overrides={"2": "bp"})
        >>> converted.conversion.counts()
        {'pfa': 1, 'bp': 1}
        >>> x = torch.randn(5, 4)
        >>> torch.equal(converted(x), model(x))
        True
    """
    refuse_converted(model)
    options = dict(options or {})
    overrides = listed(overrides)
    converted = model if inplace else copy.deepcopy(model)

    if unroll:
        unroll_recurrent(converted)
    with torch.random.fork_rng(devices=[]):
        found = discover(converted)
        shown = [] if example is None else look_at_example(converted, example, found)
    others = tuple(other_uses(converted, found))
    if strict:
        refuse_without_rule(found.skipped.values(), others)
    sites = list(found.sites.values())
    decisions = decide(converted, sites, rule, options, overrides)
    if reinit is not None:
        reinitialise(converted, decisions, reinit, seed)

    added = attach_feedback(converted, decisions, seed)
    for name, owner in found.owners.items():
        rewrite_owner(converted.get_submodule(name), owner.weights)
    for site in sites:
        layer = converted.get_submodule(site.owner)
        holder, feedback = feedback_path(site.weight)
        if hasattr(converted.get_submodule(holder), feedback):
            rewrite_layer(layer)

    tap_output(converted)
    if hasattr(converted, "reset_classifier"):
        change_class(converted, with_wrapped_method, "reset_classifier", _converting_the_new_head)

    settings = {"rule": rule, "options": options, "overrides": overrides, "seed": seed, "reinit": reinit}
    if unroll:
        settings["unroll"] = True
    if shown:
        settings["example"] = [to_plain(site) for site in shown]
    reports = tuple(_site_report(decision, added) for decision in decisions)
    make_root(converted, ConversionReport(reports, tuple(found.skipped.values()), seed, settings, others))
    return converted


def look_at_example(
    model: nn.Module, example: Example | Sequence[Mapping[str, Any]], found: Discovery
) -> list[Site]:
    """Add the sites of an example's run, or those that an earlier one has shown; return them."""
    if all(isinstance(entry, Mapping) and "weight" in entry for entry in example):
        shown = [from_plain(entry) for entry in cast(Sequence[Mapping[str, Any]], example)]
        add_sites(found, shown)
        return shown
    if not isinstance(example, tuple) or len(example) != 2 or not isinstance(example[1], Mapping):
        raise UserError("example: not a pair (args, kwargs) of a call of the model")
    return discover_by_example(model, cast(Example, example), found)


def other_uses(model: nn.Module, found: Discovery) -> Iterator[OtherUse]:
    """Yield the Parameters of two or more dimensions that are neither sites nor skipped."""
    named = found.applied() | found.skipped.keys()
    inside = tuple(f"{name}." for name in found.skipped)
    for name, parameter in model.named_parameters():
        if is_weight(parameter) and name not in named and not name.startswith(inside):
            yield OtherUse(name, tuple(parameter.shape), found.used.get(name, NOT_REACHED))


def refuse_without_rule(skipped: Iterable[Skipped], others: Iterable[OtherUse]) -> None:
    """Raise UserError if a learned weight would get no rule."""
    named = [f"{one.name} ({one.reason})" for one in skipped]
    named += [f"{other.name} ({other.use})" for other in others if other.use == NOT_REACHED]
    if named:
        more = f", and {len(named) - 3} more" if len(named) > 3 else ""
        raise UserError(f"strict: {len(named)} weights get no rule: {', '.join(named[:3])}{more}")


def attach_feedback(model: nn.Module, decisions: Sequence[Decision], seed: int) -> dict[str, int]:
    """Put each weight's feedback state beside it; return the number of its elements by weight name.

    A weight that is used or named more than once gets one state, drawn for its first name.
    """
    added: dict[str, int] = {}
    first_uses: dict[nn.Parameter, Decision] = {}
    for decision in decisions:
        added[decision.site.weight] = 0
        first_uses.setdefault(model.get_parameter(decision.site.weight), decision)

    watch, attached = UncoupledWatch(), {}
    for weight, decision in first_uses.items():
        feedback = draw_feedback(decision, weight, seed)
        if feedback is not None:
            attached[weight] = feedback
            added[decision.site.weight] = feedback.elements
            watch.over(weight, feedback)
    for decision in decisions:
        feedback = attached.get(model.get_parameter(decision.site.weight))
        if feedback is not None:
            holder, name = feedback_path(decision.site.weight)
            module = model.get_submodule(holder)
            module.add_module(name, feedback.train(module.training))
    return added


@torch.no_grad()
def draw_feedback(decision: Decision, weight: Tensor, seed: int) -> FeedbackWeight | None:
    """Return the feedback state of a weight; None where the rule leaves the plain operation alone.

    Raises:
        UserError: for a complex weight, which the feedback weights' laws do not know.
    """
    site, rule = decision.site, decision.rule
    if weight.is_complex() and rule.pathway(site.layout) is not None:
        raise UserError(f"{site.weight} is complex: give it the rule 'bp'")
    started = rule.start(site.layout, weight, Draw(derived_seed(seed, site.weight), weight))
    if started is None:
        return None
    parameter = site.weight.removeprefix(f"{feedback_path(site.weight)[0]}.")
    return FeedbackWeight(*started, rule.choice, parameter, weight.requires_grad)


def reinitialise(model: nn.Module, decisions: Iterable[Decision], how: str, seed: int) -> None:
    """Draw every site's weight from Xavier's uniform distribution and set its layer's bias to 0."""
    if how != "xavier_uniform":
        raise UserError(f"unknown initialiser {how!r}", given=how, choices=["xavier_uniform"])
    for decision in decisions:
        site = decision.site
        weight = model.get_parameter(site.weight)
        if weight.is_meta:
            continue
        draw = Draw(derived_seed(seed, f"{site.weight} itself"), weight)
        holder = model.get_submodule(feedback_path(site.weight)[0])
        bias = getattr(holder, "bias", None)
        with torch.no_grad():
            weight.copy_(draw.uniform(site.layout.shape, site.layout.xavier_std))
            if isinstance(bias, Tensor):
                bias.zero_()


def revert(converted: M, *, inplace: bool = False) -> M:
    """Return the ordinary model with the trained weights: the classes, forwards and keys of before.

    Examples:
        >>> plain = revert(convert(nn.Sequential(nn.Linear(4, 3)), "fa"))
        >>> list(plain.state_dict())
        ['0.weight', '0.bias']
    """
    if not hasattr(converted, "conversion"):
        raise UserError("the model is not a converted one: it has no attribute 'conversion'")
    plain = converted if inplace else copy.deepcopy(converted)
    for module in list(plain.modules()):
        restore(module)
    return plain


def _converting_the_new_head(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return timm's `reset_classifier`, after which the new head is converted as the model was.

    Every other layer keeps its feedback state. An override that only the old head matched is an error.
    """

    @functools.wraps(method)
    def reset_classifier(self: Any, *args: Any, **kwargs: Any) -> None:
        settings = {key: value for key, value in self.conversion.settings.items() if key != "reinit"}
        kept = {weight: getattr(holder, name) for weight, holder, name in _feedback_places(self)}
        revert(self, inplace=True).reset_classifier(*args, **kwargs)
        convert(self, **settings, inplace=True)
        for weight, holder, name in _feedback_places(self):
            setattr(holder, name, kept.get(weight, getattr(holder, name)))

    return reset_classifier


def _feedback_places(converted: Any) -> Iterator[tuple[Tensor, nn.Module, str]]:
    """Yield each site's weight that has a feedback state, with the module that holds that, and its name."""
    for site in converted.conversion.sites:
        holder, name = feedback_path(site.weight)
        if hasattr(converted.get_submodule(holder), name):
            yield converted.get_parameter(site.weight), converted.get_submodule(holder), name


def strip_feedback(converted: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the plain model, given a converted model or its state dict.

    Examples:
        >>> converted = convert(nn.Sequential(nn.Linear(4, 3)), "fa")
        >>> len(converted.state_dict()), list(strip_feedback(converted))
        (3, ['0.weight', '0.bias'])
    """
    state = converted.state_dict() if isinstance(converted, nn.Module) else converted
    marker = FEEDBACK_ATTRIBUTE.format(parameter="")
    return OrderedDict(
        (key, value)
        for key, value in state.items()
        if not any(part.startswith(marker) for part in key.split(".")[:-1])
    )


def _site_report(decision: Decision, added: Mapping[str, int]) -> SiteReport:
    site, rule = decision.site, decision.rule
    return SiteReport(
        name=site.name,
        kind=site.kind,
        weight=site.weight,
        owner=site.owner,
        weight_shape=site.weight_shape,
        rule=rule.name,
        options=rule.model_dump(exclude={"strategy"}),
        strategy=str(rule.choice.strategy),
        reason=decision.reason,
        feedback_elements=added[site.weight],
    )
