"""Symmetric alignment: a feedback weight that estimates the forward weight, a little better at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pydantic import Field
from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.rules.base import RULES, Rule
from pfa_convert.rules.draw import Draw


@RULES.register("sa")
class SymmetricAlignment(Rule):
    """`F` descends `|F - W|^2 / 2` between the steps (`feedback_phase`), at a rate of its own.

    It is not local: the update reads `W`. The source takes it as a model of weight estimation.
    """

    title = "symmetric alignment"
    formula = "dF = rate (W - F)"
    source = "Kunin, Nayebi, Sagastuy-Brena, Ganguli, Bloom & Yamins 2020"
    cost = "one pass over the weights per phase"

    rate: float = Field(0.5, gt=0, le=1, description="share of the difference that a phase takes away")

    def pathway(self, layout: WeightLayout) -> SymmetricPathway:
        """Return the pathway through `F`."""
        return SymmetricPathway(layout, self.rate)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> SymmetricState:
        """Draw the first `F`."""
        return SymmetricState(draw.uniform(layout.shape, layout.xavier_std))


class SymmetricState(NamedTuple):
    """`F` has the weight's shape."""

    F: Tensor


@dataclass(frozen=True)
class SymmetricPathway(Pathway[SymmetricState]):
    """A feedback weight on its way to the forward weight."""

    state_type: ClassVar[Any] = SymmetricState
    rate: float = 0.5

    def feedback_weight(self, W: Tensor, state: SymmetricState) -> Tensor:
        """Return `F`."""
        return state.F

    def phase(self, W: Tensor, state: SymmetricState) -> None:
        """Move `F` towards `W`."""
        state.F.lerp_(W.to(state.F.dtype), self.rate)
