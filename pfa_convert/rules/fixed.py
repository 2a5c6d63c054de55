"""Feedback alignment: a fixed random feedback weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.rules.base import RULES, SparseRule
from pfa_convert.rules.draw import Draw


@RULES.register("fa")
class FeedbackAlignment(SparseRule):
    """`F = F0`, drawn once from Xavier's uniform distribution for the weight's shape and never changed."""

    title = "feedback alignment"
    formula = "F = F0"
    source = "Lillicrap, Cownden, Tweed & Akerman 2016"
    cost = "no time; F0 in memory"

    def pathway(self, layout: WeightLayout) -> FixedPathway:
        """Return the pathway through `F0`."""
        return FixedPathway(layout)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> FixedState:
        """Draw `F0`, and its mask if the feedback is sparse."""
        F0 = draw.uniform(layout.shape, layout.xavier_std)
        if self.feedback_density < 1:
            F0 = F0 * draw.mask(layout.shape, self.feedback_density)
        return FixedState(F0)


class FixedState(NamedTuple):
    """`F0` has the weight's shape."""

    F0: Tensor


@dataclass(frozen=True)
class FixedPathway(Pathway[FixedState]):
    """A feedback weight that never changes."""

    state_type: ClassVar[Any] = FixedState

    def feedback_weight(self, W: Tensor, state: FixedState) -> Tensor:
        """Return `F0`."""
        return state.F0
