"""What is done after a step to the coupled weights of one optimizer: their feedback forgets."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pfa_convert.errors import UserError
from pfa_convert.feedback.collapsed import Collapsed, S
from pfa_convert.feedback.decay import Decay, Group, decay_of
from pfa_convert.feedback.plastic import PlasticPathway
from pfa_convert.feedback.weight import FeedbackWeight

LITTLE, SETTLED = 0.01, 100
"""What counts as forgotten in the outlook, and the steps after which a momentum has found its speed."""


@dataclass(frozen=True)
class Coupled:
    """A weight and its feedback state."""

    weight: nn.Parameter
    feedback: FeedbackWeight

    @property
    def forgotten(self) -> bool:
        """Whether `K` has been dropped."""
        return self._pathway.forgotten

    @property
    def takes_product(self) -> bool:
        """Whether `F` takes a product of weights."""
        return self._pathway.takes_product(self.feedback.named_state())

    @property
    def _pathway(self) -> Collapsed[Any]:
        assert isinstance(self.feedback.pathway, Collapsed)
        return self.feedback.pathway

    @torch.no_grad()
    def start_is_small(self) -> bool:
        """Return whether `|s K| / |F|` is below the rounding of the weight's dtype."""
        state = self.feedback.named_state()
        left = state.forgetting[S].abs() * state.K.norm() / self.feedback.feedback_weight(self.weight).norm()
        return bool(left < torch.finfo(self.weight.dtype).eps / 2)


@dataclass(frozen=True)
class CoupledOptimizer:
    """An optimizer, and those of its weights that are coupled.

    `owner` refers to the optimizer, whose hooks hold this. `collapsed` are in closed form; of the `literal`
    ones the plastic tensor is a Parameter. `forgetting` is as in `couple`. A weight forgets by the parameter
    group that has it now: groups may be rebuilt, merged or deleted between the steps.
    """

    owner: weakref.ref[Optimizer]
    forgetting: float | None = None
    collapsed: list[Coupled] = field(default_factory=list)
    literal: list[Coupled] = field(default_factory=list)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer; raises UserError once it is gone."""
        found = self.owner()
        if found is None:
            raise UserError("the optimizer that the model was coupled to is gone: couple with another one")
        return found

    def group_of_each(self) -> dict[Tensor, dict[str, Any]]:
        """Return the present group of each parameter."""
        return {parameter: group for group in self.optimizer.param_groups for parameter in group["params"]}

    def decay(self, group: Group) -> Decay:
        """Return how the weights of one of the optimizer's groups decay, with the forgetting beside it."""
        decay = decay_of(self.optimizer, group)
        return decay if self.forgetting is None else decay.with_forgetting(self.forgetting)

    @torch.no_grad()
    def begin(self) -> None:
        """Before a step: let `s` start anew with a momentum that the optimizer has not begun either."""
        for group, members in self._by_group(self.collapsed):
            if self.decay(group).carries(group):
                for coupled in members:
                    if not self.optimizer.state.get(coupled.weight):
                        coupled.feedback.get_buffer("forgetting")[S + 1 :].zero_()

    @torch.no_grad()
    def advance(self) -> None:
        """Make the optimizer's step on `s`, for the weights that have a gradient."""
        for group, members in self._by_group(self.collapsed):
            decay = self.decay(group)
            learned = [c.feedback.get_buffer("forgetting") for c in members if c.weight.grad is not None]
            for device in dict.fromkeys(forgetting.device for forgetting in learned):
                moved = [forgetting for forgetting in learned if forgetting.device == device]
                old = torch.stack(moved)
                new = decay.advance(old, group)
                skipped = self._skipped(device)
                if skipped is not None:
                    new = torch.where(skipped, old, new)
                torch._foreach_copy_(moved, list(new.unbind(0)))

    @torch.no_grad()
    def forget_literally(self) -> None:
        """Move every plastic tensor `P` a part of the way to `A(W)`: the forgetting, as it is defined."""
        if self.forgetting is None:
            return
        for weight, feedback in ((c.weight, c.feedback) for c in self.literal if c.weight.grad is not None):
            pathway = feedback.pathway
            assert isinstance(pathway, PlasticPathway)
            P = feedback.get_parameter(pathway.plastic)
            share = P.new_full((), 1 / self.forgetting)
            skipped = self._skipped(P.device)
            if skipped is not None:
                share = share * ~skipped
            P.lerp_(pathway.masked_change(weight.detach().to(P.dtype), feedback.named_state()), share)

    def _by_group(self, members: Iterable[Coupled]) -> Iterable[tuple[Group, list[Coupled]]]:
        """Return the present groups with those of the members that they have."""
        group_of = self.group_of_each()
        found: dict[int, tuple[Group, list[Coupled]]] = {}
        for coupled in members:
            if (group := group_of.get(coupled.weight)) is not None:
                found.setdefault(id(group), (group, []))[1].append(coupled)
        return found.values()

    def _skipped(self, device: torch.device) -> Tensor | None:
        """Return whether a GradScaler had the step skipped; None where there is none."""
        found_inf: Tensor | None = getattr(self.optimizer, "found_inf", None)
        return None if found_inf is None else found_inf.to(device) > 0

    @torch.no_grad()
    def outlook(self, coupled: Coupled) -> tuple[str, str]:
        """Return `s` and the steps until it is 1 % at the present rates of the weight's group, as text.

        The rate is that of a step after `SETTLED` further ones, when a momentum has found its speed.
        """
        forgetting = coupled.feedback.get_buffer("forgetting")
        s, ahead = float(forgetting[S]), forgetting.clone().unsqueeze(0)
        if s <= LITTLE:
            return f"{s:.1%}", "0"
        group = self.group_of_each().get(coupled.weight)
        if group is None:
            return f"{s:.1%}", "never"
        decay = self.decay(group)
        for step in range(1, SETTLED + 1):
            before, ahead = float(ahead[0, S]), decay.advance(ahead, group)
            if (after := float(ahead[0, S])) <= LITTLE:
                return f"{s:.1%}", str(step)
        if not 0 < after < before:
            return f"{s:.1%}", "never"
        return f"{s:.1%}", f"{SETTLED + math.ceil(math.log(LITTLE / after) / math.log(after / before)):,}"

    def forget_if_small(self) -> None:
        """Drop every `K` once none of them counts: together, since a compiled model is compiled anew.

        A `K` that was copied stays, at its size, for a copy that averages it.
        """
        moving = [
            c for c in self.collapsed if c.weight.requires_grad and not c.forgotten and not c.feedback.copied
        ]
        if all(c.start_is_small() for c in moving):
            for coupled in moving:
                coupled.feedback.forget()
