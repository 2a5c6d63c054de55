"""Sign-concordant feedback: the signs of the forward weight with magnitudes of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.rules.base import RULES, Draw, Rule, SparseRule


@RULES.register("usf")
class UniformSign(SparseRule):
    """`F = sigma sign(W)` with sigma the standard deviation of Xavier's initialiser."""

    name = "usf"
    title = "uniform sign-concordant feedback"
    formula = "F = sigma * sign(W)"
    source = "Moskovitz, Litwin-Kumar & Abbott 2018; Xiao, Chen, Liao & Poggio 2018"
    cost = "one pass over the weights per step"

    def pathway(self, layout: WeightLayout) -> Pathway:
        """Return the pathway, masked if the feedback is sparse."""
        if self.feedback_density < 1:
            return MaskedUniformSignPathway(layout)
        return UniformSignPathway(layout)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> dict[str, Tensor]:
        """Draw the mask if the feedback is sparse."""
        if self.feedback_density < 1:
            return {"mask": draw.mask(layout.shape, self.feedback_density)}
        return {}


@dataclass(frozen=True)
class UniformSignPathway(Pathway):
    """One magnitude for all connections."""

    def feedback_weight(self, W: Tensor, *state: Tensor) -> Tensor:
        """Return `sigma sign(W)`."""
        return W.sign() * self.layout.xavier_std


@dataclass(frozen=True)
class MaskedUniformSignPathway(UniformSignPathway):
    """One magnitude for the connections that exist."""

    names = ("mask",)

    def feedback_weight(self, W: Tensor, *state: Tensor) -> Tensor:
        """Return `mask o (sigma sign(W))`."""
        (mask,) = state
        return mask * super().feedback_weight(W)


@RULES.register("frsf")
class FixedRandomSign(Rule):
    """`F = |F0| sign(W)`, the magnitudes drawn once from Xavier's uniform distribution."""

    name = "frsf"
    title = "fixed random-magnitude sign-concordant feedback"
    formula = "F = |F0| * sign(W)"
    source = "Moskovitz, Litwin-Kumar & Abbott 2018"
    cost = "one pass over the weights per step; the magnitudes in memory"

    def pathway(self, layout: WeightLayout) -> Pathway:
        """Return the pathway with fixed magnitudes."""
        return FixedRandomSignPathway(layout)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> dict[str, Tensor]:
        """Draw the magnitudes."""
        return {"magnitude": draw.uniform(layout.shape, layout.xavier_std).abs()}


@dataclass(frozen=True)
class FixedRandomSignPathway(Pathway):
    """Magnitudes that never change under signs that do."""

    names = ("magnitude",)

    def feedback_weight(self, W: Tensor, *state: Tensor) -> Tensor:
        """Return `|F0| sign(W)`."""
        (magnitude,) = state
        return magnitude * W.sign()


@RULES.register("brsf")
class BatchwiseRandomSign(Rule):
    """`F = |draw| sign(W)`, the magnitudes drawn anew in every backward pass.

    They come from PyTorch's global generator, as dropout's masks do.
    """

    name = "brsf"
    title = "batchwise random-magnitude sign-concordant feedback"
    formula = "F = |draw anew at each step| * sign(W)"
    source = "Moskovitz, Litwin-Kumar & Abbott 2018"
    cost = "one pass over the weights, and their number of random draws, per step"

    def pathway(self, layout: WeightLayout) -> Pathway:
        """Return the pathway that draws."""
        return BatchwiseRandomSignPathway(layout)


@dataclass(frozen=True)
class BatchwiseRandomSignPathway(Pathway):
    """Magnitudes drawn at each call."""

    def feedback_weight(self, W: Tensor, *state: Tensor) -> Tensor:
        """Return `|draw| sign(W)`, Xavier-uniform before the absolute value."""
        bound = math.sqrt(3.0) * self.layout.xavier_std
        return torch.empty_like(W).uniform_(-bound, bound).abs() * W.sign()
