"""Sign-concordant feedback: the signs of the forward weight with magnitudes of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.rules.base import RULES, Rule, SparseRule
from pfa_convert.rules.draw import Draw


@RULES.register("usf")
class UniformSign(SparseRule):
    """`F = sigma sign(W)` with sigma the standard deviation of Xavier's initialiser."""

    title = "uniform sign-concordant feedback"
    formula = "F = sigma * sign(W)"
    source = "Moskovitz, Litwin-Kumar & Abbott 2018; Xiao, Chen, Liao & Poggio 2018"
    cost = "one pass over the weights per step"

    def pathway(self, layout: WeightLayout) -> SignPathway:
        """Return the pathway with one magnitude for all connections."""
        return SignPathway(layout)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> SignState:
        """Draw the mask if the feedback is sparse."""
        if self.feedback_density < 1:
            return SignState(mask=draw.mask(layout.shape, self.feedback_density))
        return SignState()


@RULES.register("frsf")
class FixedRandomSign(Rule):
    """`F = |F0| sign(W)`, the magnitudes drawn once from Xavier's uniform distribution."""

    title = "fixed random-magnitude sign-concordant feedback"
    formula = "F = |F0| * sign(W)"
    source = "Moskovitz, Litwin-Kumar & Abbott 2018"
    cost = "one pass over the weights per step; the magnitudes in memory"

    def pathway(self, layout: WeightLayout) -> SignPathway:
        """Return the pathway with fixed magnitudes."""
        return SignPathway(layout)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> SignState:
        """Draw the magnitudes."""
        return SignState(magnitude=draw.uniform(layout.shape, layout.xavier_std).abs())


@RULES.register("brsf")
class BatchwiseRandomSign(Rule):
    """`F = |draw| sign(W)`, the magnitudes drawn anew in every backward pass.

    They come from PyTorch's global generator, as dropout's masks do.
    """

    title = "batchwise random-magnitude sign-concordant feedback"
    formula = "F = |draw anew at each step| * sign(W)"
    source = "Moskovitz, Litwin-Kumar & Abbott 2018"
    cost = "one pass over the weights, and their number of random draws, per step"

    def pathway(self, layout: WeightLayout) -> SignPathway:
        """Return the pathway that draws."""
        return SignPathway(layout, anew=True)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> SignState:
        """Return the empty state."""
        return SignState()


class SignState(NamedTuple):
    """Both have the weight's shape; without a magnitude it is sigma, or drawn at each call."""

    magnitude: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class SignPathway(Pathway[SignState]):
    """The signs of `W` with other magnitudes, which are drawn at each call if `anew`."""

    state_type: ClassVar[Any] = SignState
    anew: bool = False

    def feedback_weight(self, W: Tensor, state: SignState) -> Tensor:
        """Return `magnitude sign(W)`, where the connection exists."""
        F = W.sign() * self._magnitude(W, state)
        return F if state.mask is None else state.mask * F

    def _magnitude(self, W: Tensor, state: SignState) -> Tensor | float:
        if state.magnitude is not None:
            return state.magnitude
        if not self.anew:
            return self.layout.xavier_std
        bound = math.sqrt(3.0) * self.layout.xavier_std
        return torch.empty_like(W).uniform_(-bound, bound).abs()
