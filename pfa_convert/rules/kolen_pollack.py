"""Kolen-Pollack learning: a feedback weight that receives the forward weight's own updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pfa_convert.feedback.collapsed import CollapsedPathway, MaskedCollapsedPathway
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import Pathway, State
from pfa_convert.rules.base import RULES, Draw, SparseRule


@RULES.register("kp")
class KolenPollack(SparseRule):
    """`F` is plastic with gradient `dL/dW`; weight decay makes it forget where it differs from `W`."""

    name = "kp"
    title = "Kolen-Pollack learning"
    strategies = ("fused", "collapsed")
    formula = "dF = dW, with the same weight decay"
    source = "Kolen & Pollack 1994; Akrout, Wilson, Humphreys, Lillicrap & Tweed 2019"
    cost = "`collapsed`: nothing; `fused`: a second copy of each weight and of its optimizer state"

    def pathway(self, layout: WeightLayout) -> Pathway:
        """Return the pathway, masked if the feedback is sparse."""
        return MaskedPlasticPathway(layout) if self.feedback_density < 1 else PlasticPathway(layout)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> dict[str, Tensor]:
        """Draw the first `F`, and its mask if the feedback is sparse."""
        F = draw.uniform(layout.shape, layout.xavier_std)
        if self.feedback_density == 1:
            return {"F": F}
        mask = draw.mask(layout.shape, self.feedback_density)
        return {"F": F * mask, "mask": mask}


@dataclass(frozen=True)
class PlasticPathway(Pathway):
    """A feedback weight learned like the forward weight."""

    names: ClassVar[tuple[str, ...]] = ("F",)
    plastic: ClassVar[frozenset[str]] = frozenset({"F"})

    def feedback_weight(self, W: Tensor, *state: Tensor) -> Tensor:
        """Return `F`."""
        return state[0]

    def state_gradients(self, grad_W: Tensor, *state: Tensor) -> tuple[Tensor | None, ...]:
        """Return `dL/dW`."""
        return (grad_W.to(state[0].dtype),)

    def collapse(self, W: Tensor, *state: Tensor) -> tuple[Pathway, State]:
        """Return `F = W + s K`."""
        pathway = CollapsedPathway(self.layout)
        return pathway, pathway.start(W, state[0].detach())


@dataclass(frozen=True)
class MaskedPlasticPathway(PlasticPathway):
    """The same for the connections that exist."""

    names: ClassVar[tuple[str, ...]] = ("F", "mask")

    def state_gradients(self, grad_W: Tensor, *state: Tensor) -> tuple[Tensor | None, ...]:
        """Return `mask o dL/dW`."""
        F, mask = state
        return mask * grad_W.to(F.dtype), None

    def collapse(self, W: Tensor, *state: Tensor) -> tuple[Pathway, State]:
        """Return `F = M o W + s K`."""
        F, mask = state
        pathway = MaskedCollapsedPathway(self.layout)
        return pathway, pathway.start(W, F.detach(), mask)
