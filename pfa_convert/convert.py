"""From a model to the converted model, and back: the story from top to bottom."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pfa_convert.errors import UserError
from pfa_convert.feedback.strategy import Strategy
from pfa_convert.feedback.weight import FEEDBACK_ATTRIBUTE
from pfa_convert.graph.attach import attach_feedback, reinitialise
from pfa_convert.graph.discover import discover
from pfa_convert.graph.example import Example, discover_by_example, to_plain
from pfa_convert.graph.overrides import Decision, decide, listed
from pfa_convert.graph.report import ConversionReport, SiteReport
from pfa_convert.graph.rewrite import restore, rewrite, unroll_recurrent
from pfa_convert.graph.root import make_root, refuse_converted
from pfa_convert.graph.sites import NOT_REACHED, OtherUse, Skipped, feedback_path
from pfa_convert.graph.subclass import change_class, with_wrapped_method

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
    converted = model if inplace else _copied(model)

    if unroll:
        unroll_recurrent(converted)
    with torch.random.fork_rng(devices=[]):
        found = discover(converted)
        shown = [] if example is None else discover_by_example(converted, example, found)
    others = tuple(found.others(converted))
    if strict:
        refuse_without_rule(found.skipped.values(), others)
    decisions = decide(converted, list(found.sites.values()), rule, options, overrides)

    if reinit is not None:
        reinitialise(converted, decisions, reinit, seed)
    added = attach_feedback(converted, decisions, seed)
    rewrite(converted, found)
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


def _copied(model: M) -> M:
    """Return a copy whose Parameters an optimizer takes: those of a ScriptModule PyTorch clones."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if not parameter.is_leaf:
            parameter.detach_().requires_grad_()
    return copied


def refuse_without_rule(skipped: Iterable[Skipped], others: Iterable[OtherUse]) -> None:
    """Raise UserError if a learned weight would get no rule."""
    named = [f"{one.name} ({one.reason})" for one in skipped]
    named += [f"{other.name} ({other.use})" for other in others if other.use == NOT_REACHED]
    if named:
        more = f", and {len(named) - 3} more" if len(named) > 3 else ""
        raise UserError(f"strict: {len(named)} weights get no rule: {', '.join(named[:3])}{more}")


def revert(converted: M, *, inplace: bool = False) -> M:
    """Return the ordinary model with the trained weights: the classes, forwards and keys of before.

    Examples:
        >>> plain = revert(convert(nn.Sequential(nn.Linear(4, 3)), "fa"))
        >>> list(plain.state_dict())
        ['0.weight', '0.bias']
    """
    if not hasattr(converted, "conversion"):
        raise UserError("the model is not a converted one: it has no attribute 'conversion'")
    plain = converted if inplace else _copied(converted)
    for module in list(plain.modules()):
        restore(module)
    return plain


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
        strategy=str(rule.choice.strategy if site.weight in added else Strategy.NATIVE),
        reason=decision.reason,
        feedback_elements=added.get(site.weight, 0),
    )
