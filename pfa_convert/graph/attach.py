"""What a conversion draws: each weight's feedback state, put beside it, and weights that begin anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pfa_convert.errors import UserError
from pfa_convert.feedback.uncoupled import UncoupledWatch
from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.graph.overrides import Decision
from pfa_convert.graph.sites import feedback_path
from pfa_convert.rules.draw import Draw
from pfa_convert.seeds import derived_seed


def attach_feedback(model: nn.Module, decisions: Sequence[Decision], seed: int) -> dict[str, int]:
    """Put each weight's feedback state beside it; return the number of its elements by weight name.

    A weight that is used or named more than once gets one state, drawn and counted for its first name. One
    whose operation the rule leaves alone gets none, and is not among the names.
    """
    added: dict[str, int] = {}
    first_uses: dict[nn.Parameter, Decision] = {}
    for decision in decisions:
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
            added.setdefault(decision.site.weight, 0)
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
