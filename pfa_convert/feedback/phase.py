"""What the feedback weights that learn between the steps do there."""

from __future__ import annotations

import torch
from torch import nn

from pfa_convert.errors import UserError
from pfa_convert.feedback.finding import feedback_weights
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.feedback.weight import FeedbackWeight


def learning_between_steps(model: nn.Module) -> list[tuple[nn.Parameter, FeedbackWeight]]:
    """Return the weights whose feedback weight learns in phases, with their feedback state."""
    return [
        (weight, feedback)
        for _, weight, feedback in feedback_weights(model)
        if type(feedback.pathway).phase is not Pathway.phase
    ]


@torch.no_grad()
def feedback_phase(model: nn.Module) -> None:
    """Run one learning phase for the rules that learn between steps: `wm` and `ia` from noise, `sa` from `W`.

    Call it after `optimizer.step()`, as often as the rule needs; sites of other rules are left alone.

    Raises:
        UserError: if the model has no such feedback weight.
    """
    learning = learning_between_steps(model)
    if not learning:
        raise UserError(
            "no feedback weight of this model learns between the steps: no rule of it has a phase"
        )
    for weight, feedback in learning:
        feedback.pathway.phase(weight, feedback.named_state())
