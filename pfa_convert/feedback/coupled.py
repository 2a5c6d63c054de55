"""What is done after a step to the coupled weights of one parameter group: their feedback forgets."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pfa_convert.errors import UserError
from pfa_convert.feedback.collapsed import Collapsed, S
from pfa_convert.feedback.decay import Decay
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
class CoupledGroup:
    """A parameter group of an optimizer, how it lets its weights decay, and those of them that are coupled.

    `owner` refers to the optimizer, whose hooks hold this; `index` and the list `params` tell which of its
    groups it is. `collapsed` are in closed form; of the `literal` ones the plastic tensor is a Parameter.
    `forgetting` is as in `couple`.
    """

    owner: weakref.ref[Optimizer]
    index: int
    params: list[Tensor]
    decay: Decay
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

    @property
    def present(self) -> dict[str, Any]:
        """The group as the optimizer has it now: a loaded state makes new groups of the same lists."""
        groups = self.optimizer.param_groups
        found = next((group for group in groups if group["params"] is self.params), None)
        return groups[self.index] if found is None else found

    @torch.no_grad()
    def begin(self) -> None:
        """Before a step: let `s` start anew with a momentum that the optimizer has not begun either."""
        if self.decay.carries(self.present):
            for weight, feedback in ((c.weight, c.feedback) for c in self.collapsed):
                if not self.optimizer.state.get(weight):
                    feedback.get_buffer("forgetting")[S + 1 :].zero_()

    @torch.no_grad()
    def advance(self) -> None:
        """Make the optimizer's step on `s`, for the weights that have a gradient."""
        learned = [c.feedback.get_buffer("forgetting") for c in self.collapsed if c.weight.grad is not None]
        for device in dict.fromkeys(forgetting.device for forgetting in learned):
            moved = [forgetting for forgetting in learned if forgetting.device == device]
            old = torch.stack(moved)
            new = self.decay.advance(old, self.present)
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

    def _skipped(self, device: torch.device) -> Tensor | None:
        """Return whether a GradScaler had the step skipped; None where there is none."""
        found_inf: Tensor | None = getattr(self.optimizer, "found_inf", None)
        return None if found_inf is None else found_inf.to(device) > 0

    @torch.no_grad()
    def outlook(self, forgetting: Tensor) -> tuple[str, str]:
        """Return `s` and the steps until it is 1 % at the group's present rates, as text.

        The rate is that of a step after `SETTLED` further ones, when a momentum has found its speed.
        """
        s, ahead = float(forgetting[S]), forgetting.clone().unsqueeze(0)
        if s <= LITTLE:
            return f"{s:.1%}", "0"
        for step in range(1, SETTLED + 1):
            before, ahead = float(ahead[0, S]), self.decay.advance(ahead, self.present)
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
