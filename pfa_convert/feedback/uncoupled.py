"""A warning for models that train without `couple`: their plastic feedback weights would never forget."""

from __future__ import annotations

import warnings
import weakref

from torch import Tensor, nn

from pfa_convert.feedback.collapsed import Collapsed
from pfa_convert.feedback.weight import FeedbackWeight


class UncoupledWatch:
    """Looks, in each backward pass, whether a weight has moved since the first one; warns once a model.

    Only weights whose feedback state is collapsed are watched, by a hook that runs outside of compiled code
    and does nothing while an optimizer is followed. The sum of a weight's entries tells that it has moved:
    version counters miss the optimizers that are fused.
    """

    def __init__(self) -> None:
        self._warned = False

    def over(self, weight: nn.Parameter, feedback: FeedbackWeight) -> None:
        """Watch a weight, if its feedback state wants to be coupled."""
        if not isinstance(feedback.pathway, Collapsed) or weight.is_meta:
            return
        first: list[Tensor] = []
        state = weakref.ref(feedback)

        def look(parameter: Tensor) -> None:
            watched = state()
            if self._warned or watched is None:
                return
            if watched.coupled:
                first.clear()
                return
            total = parameter.detach().sum()
            if not first:
                first.append(total)
            elif total != first[0]:
                self._warn()

        learns = weight.requires_grad
        weight.requires_grad_(True)  # a frozen weight takes no hook, and may learn later
        weight.register_post_accumulate_grad_hook(look)
        weight.requires_grad_(learns)

    def _warn(self) -> None:
        self._warned = True
        warnings.warn(
            "the weights have moved, but their feedback weights follow no optimizer, so that they do not "
            "forget their start: add couple(model, optimizer) where the optimizer is made",
            stacklevel=2,
        )
