"""Backpropagation, the control: the error travels through the forward weight itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import NoState, Pathway
from pfa_convert.feedback.strategy import Strategy
from pfa_convert.rules.base import RULES, Rule


@RULES.register("bp")
class Backpropagation(Rule):
    """`F = W`. The operation is left as it is, so every bit is the plain model's.

    With the strategy `explicit` the operation goes through the feedback primitive all the same, which
    proves that a site is really rewritten.
    """

    title = "backpropagation"
    formula = "F = W"
    source = "Rumelhart, Hinton & Williams 1986"
    cost = "none"
    strategies = ("native", "explicit")

    def pathway(self, layout: WeightLayout) -> TransportPathway | None:
        """Return None, or the transporting pathway for the strategy `explicit`."""
        return TransportPathway(layout) if self.choice.strategy is Strategy.EXPLICIT else None


@dataclass(frozen=True)
class TransportPathway(Pathway[NoState]):
    """The weight itself, carried over to the backward pass."""

    def feedback_weight(self, W: Tensor, state: NoState) -> Tensor:
        """Return `W`."""
        return W
