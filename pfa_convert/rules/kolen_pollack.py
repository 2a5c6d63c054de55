"""Kolen-Pollack learning: a feedback weight that receives the forward weight's own updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.plastic import PlasticPathway
from pfa_convert.rules.base import RULES, PlasticRule, SparseRule
from pfa_convert.rules.draw import Draw


@RULES.register("kp")
class KolenPollack(SparseRule, PlasticRule):
    """`F` receives what `W` receives; weight decay makes it forget where it differs from `W`."""

    title = "Kolen-Pollack learning"
    formula = "dF = dW, with the same weight decay"
    source = "Kolen & Pollack 1994; Akrout, Wilson, Humphreys, Lillicrap & Tweed 2019"
    cost = "`collapsed`: nothing; `fused`: a second copy of each weight and of its optimizer state"

    def pathway(self, layout: WeightLayout) -> KolenPollackPathway:
        """Return the pathway with a plastic `F`."""
        return KolenPollackPathway(layout)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> KolenPollackState:
        """Draw the first `F`, and its mask if the feedback is sparse."""
        F = draw.uniform(layout.shape, layout.xavier_std)
        if self.feedback_density == 1:
            return KolenPollackState(F)
        mask = draw.mask(layout.shape, self.feedback_density)
        return KolenPollackState(F * mask, mask)


class KolenPollackState(NamedTuple):
    """`F` and `mask` have the weight's shape."""

    F: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class KolenPollackPathway(PlasticPathway[KolenPollackState]):
    """A feedback weight learned like the forward weight."""

    state_type: ClassVar[Any] = KolenPollackState
    plastic: ClassVar[str] = "F"

    def feedback_weight(self, W: Tensor, state: KolenPollackState) -> Tensor:
        """Return `F`."""
        return state.F

    def change(self, dW: Tensor, state: KolenPollackState) -> Tensor:
        """Return `dW`."""
        return dW
