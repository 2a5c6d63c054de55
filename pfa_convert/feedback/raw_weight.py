"""A Parameter that a forward applies, as it is or computed to something else first, with its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfa_convert.feedback.learned import Learned
from pfa_convert.feedback.primitive import PlasticTap
from pfa_convert.feedback.weight import FeedbackWeight


class RawWeight(Learned):
    """A Parameter with its feedback state."""

    def __init__(self, weight: Tensor, state: FeedbackWeight) -> None:
        super().__init__(weight, recompute=lambda: _in_form_of(weight, state.feedback_weight(weight)))
        self.state = state
        self.direct = None if state.pathway.follows_weight else state
        self.tapped: Tensor | None = None
        self.tapped_in: Any = None


def tap(V: Tensor, feedback: FeedbackWeight) -> Tensor:
    """Return the raw weight `V`, whose gradient then also reaches the plastic state."""
    if not torch.is_grad_enabled() or not feedback.pathway.plastic:
        return V
    return PlasticTap.apply(feedback.pathway, V, *feedback.state())


def _in_form_of(W: Tensor, F: Tensor) -> Tensor:
    """Return `F` such that what can be done to `W` can be done to it.

    Autocast makes `G W` in half precision, also for a product that it leaves in the weight's own; and `F` of
    `x @ W` is made transposed, of which `W.view(...)` would not be a view.
    """
    F = F.to(W.dtype)
    return F.contiguous() if W.is_contiguous() else F
