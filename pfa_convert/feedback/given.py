"""Feedback weights that are computed before the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import Pathway


@dataclass(frozen=True)
class GivenFeedback:
    """A feedback weight that is already computed, in the place of a FeedbackWeight."""

    F: Tensor

    def way(self) -> tuple[GivenPathway, tuple[Tensor, ...]]:
        """Return the way through the given tensor, and the tensor."""
        return GivenPathway(WeightLayout(tuple(self.F.shape))), (self.F,)


class GivenState(NamedTuple):
    """`F` has the shape of the weight that is applied."""

    F: Tensor


@dataclass(frozen=True)
class GivenPathway(Pathway[GivenState]):
    """The way through the given tensor."""

    state_type: ClassVar[Any] = GivenState

    def feedback_weight(self, W: Tensor, state: GivenState) -> Tensor:
        """Return the given tensor."""
        return state.F
