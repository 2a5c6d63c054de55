"""Tying the feedback weights to the optimizer, so that their plastic state need not exist."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from pfa_convert.errors import UserError
from pfa_convert.feedback.collapsed import CollapsedPathway
from pfa_convert.feedback.weight import FeedbackWeight, feedback_weights

CHECK_INTERVAL = 100
"""Steps between two looks at what costs a synchronisation: forgotten `K`, clipping by value."""


ENTRIES_AT_BOUND = 8
"""So many gradient entries of the same, largest magnitude are taken for a sign of clipping by value."""


@dataclass(frozen=True)
class Coupled:
    """A weight, its name, its feedback state, and the index of its parameter group."""

    name: str
    weight: nn.Parameter
    feedback: FeedbackWeight
    group: int


class Coupling:
    """The handle that `couple` returns; `strategy` tells what was chosen for each weight, and why.

    `steps` counts those of the optimizer: a checkpoint keeps it, for it decides when `K` is looked at.
    After each step of the optimizer it advances `s`, by the optimizer's own recursion.
    """

    def __init__(self, optimizer: Optimizer, coupled: list[Coupled], strategy: dict[str, str]) -> None:
        self.strategy = strategy
        self._optimizer = optimizer
        self._coupled = coupled
        self.steps = 0
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Stop following the optimizer; the feedback weights keep the `s` they have."""
        for hook in self._hooks:
            hook.remove()
        for coupled in self._coupled:
            coupled.feedback.optimizer = None

    def forget_all(self) -> None:
        """Drop every `K` now, as happens by itself once it has decayed; for measuring what then remains."""
        for coupled in self._coupled:
            _forget(coupled)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.steps < 3 or self.steps % CHECK_INTERVAL == 0:
            self._refuse_clipping_by_value()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for index, group in enumerate(optimizer.param_groups):
            moved = [c.feedback for c in self._coupled if c.group == index and c.weight.grad is not None]
            if moved:
                _advance(
                    [f.get_buffer("forgetting") for f in moved], group, getattr(optimizer, "found_inf", None)
                )
        self.steps += 1
        if self.steps % CHECK_INTERVAL == 0:
            for coupled in self._coupled:
                _forget_if_small(coupled)

    def _refuse_clipping_by_value(self) -> None:
        """Clipping by value is not linear: `R` would not receive `B^T` times what `W` receives.

        It leaves many entries, of several weights, at the very same largest magnitude, which nothing
        else does.
        """
        gradients = [c.weight.grad for c in self._coupled if c.weight.grad is not None]
        if not gradients:
            return
        largest = torch.stack([gradient.abs().max() for gradient in gradients]).max()
        at_bound = [int((gradient.abs() == largest).sum()) for gradient in gradients]
        several = sum(count > 0 for count in at_bound) > 1
        if largest > 0 and largest.isfinite() and several and sum(at_bound) >= ENTRIES_AT_BOUND:
            raise UserError(
                "the gradients look clipped by value, for which the collapsed strategy is not exact: clip "
                "by norm, or convert with options={'strategy': 'fused'}"
            )


def couple(model: nn.Module, optimizer: Optimizer) -> Coupling:
    """Replace the plastic feedback state by its closed form under this optimizer; exact, and free.

    Works for `torch.optim.SGD` with any learning rate, weight decay, momentum, dampening and Nesterov in
    each parameter group, and any schedule of them. Other optimizers, and weights whose strategy was
    asked for by name, keep the strategy `fused`; `strategy` of the returned handle says which and why.
    Call it before the first step, after moving the model to its device.

    Raises:
        UserError: if the model has no feedback weights, is coupled already, or the optimizer misses
            some of its parameters or has made steps.
    """
    found = list(feedback_weights(model))
    if not found:
        raise UserError("nothing to couple: the model has no feedback weights; convert it first")
    if any(feedback.optimizer is not None and feedback.optimizer() is not None for _, _, feedback in found):
        raise UserError("the model is coupled to an optimizer already")
    groups = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    strategy, coupled = {}, []
    for name, weight, feedback in found:
        _refuse_incomplete(name, weight, feedback, groups, optimizer)
        reason = _obstacle(weight, feedback, groups, optimizer)
        strategy[name] = reason or "collapsed"
        if reason is None:
            _collapse(weight, feedback, optimizer)
            feedback.optimizer = weakref.ref(optimizer)
            if weight in groups:
                coupled.append(Coupled(name, weight, feedback, groups[weight]))
    return Coupling(optimizer, coupled, strategy)


def _refuse_incomplete(
    name: str, weight: Tensor, feedback: FeedbackWeight, groups: dict[Tensor, int], optimizer: Optimizer
) -> None:
    for parameter, label in [(weight, name), *((p, f"{name}: {n}") for n, p in feedback.named_parameters())]:
        if parameter.requires_grad and parameter not in groups:
            raise UserError(
                f"the optimizer misses the parameter {label}; give it all of model.parameters() after convert"
            )
        if feedback.pathway.plastic and optimizer.state.get(parameter):
            raise UserError("the optimizer has made steps already; couple before the first one")


def _obstacle(
    weight: Tensor, feedback: FeedbackWeight, groups: dict[Tensor, int], optimizer: Optimizer
) -> str | None:
    """Say why the weight keeps its strategy, or return None if it can be collapsed."""
    if isinstance(feedback.pathway, CollapsedPathway):
        return None
    if not feedback.pathway.plastic:
        return "fixed: the rule has no plastic state"
    if feedback.strategy is not None:
        return f"{feedback.strategy}: asked for by name"
    if type(optimizer) is not SGD:
        return f"fused: {type(optimizer).__name__} is not linear in the gradient"
    if len({groups.get(p) for p in (weight, *feedback.parameters())}) > 1:
        return "fused: weight and feedback weight are in different parameter groups"
    return None


@torch.no_grad()
def _collapse(weight: Tensor, feedback: FeedbackWeight, optimizer: Optimizer) -> None:
    if isinstance(feedback.pathway, CollapsedPathway):
        return
    plastic = set(feedback.parameters())
    pathway, state = feedback.pathway.collapse(weight, *feedback.state())
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p not in plastic]
    feedback.adopt(pathway, dict(zip(pathway.names, state, strict=True)))


def _advance(forgettings: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
    """Make the step of SGD on `s`, for a parameter without gradient, in SGD's own order."""
    old = torch.stack(forgettings)
    s, v, started = old.unbind(dim=1)
    d = group["weight_decay"] * s
    if group["momentum"] != 0:
        v = group["momentum"] * v + (1 - group["dampening"] * started) * d
        started = torch.ones_like(started)
        d = d + group["momentum"] * v if group["nesterov"] else v
    new = torch.stack([s - group["lr"] * d, v, started], dim=1)
    if found_inf is not None:
        new = torch.where(found_inf.to(old.device) > 0, old, new)
    torch._foreach_copy_(forgettings, list(new.unbind(0)))


def _forget_if_small(coupled: Coupled) -> None:
    """Drop `K` once it is below the rounding of the weight's dtype."""
    feedback, weight = coupled.feedback, coupled.weight
    pathway = feedback.pathway
    assert isinstance(pathway, CollapsedPathway)
    if pathway.forgotten:
        return
    if pathway.share_left(weight, *feedback.state()) < torch.finfo(weight.dtype).eps / 2:
        _forget(coupled)


def _forget(coupled: Coupled) -> None:
    feedback = coupled.feedback
    assert isinstance(feedback.pathway, CollapsedPathway)
    pathway, state = feedback.pathway.forget(*feedback.state())
    feedback.adopt(pathway, dict(zip(pathway.names, state, strict=True)))
