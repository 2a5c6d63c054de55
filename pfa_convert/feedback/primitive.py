"""The two doors to autograd: an operation applied with feedback, and a raw weight that is tapped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfa_convert.feedback.guards import refuse_second_derivative, refuse_transforms
from pfa_convert.feedback.operations import Operation
from pfa_convert.feedback.pathway import Pathway, Tensors, gradients_of_state


def apply_feedback(
    operation: Operation, pathway: Pathway[Any], x: Tensor, W: Tensor, b: Tensor | None, state: Tensors
) -> Tensor:
    """Return `operation(x, W, b)`; its gradient with respect to `x` goes through the pathway's `F`.

    Without gradients this is the plain operation and nothing else. Under autocast the operands are
    cast as the plain operation's would be; the state keeps its precision.

    Raises:
        RuntimeError: under `torch.func` transforms; and in the backward pass, when `create_graph=True` asks
            for a second derivative.
    """
    if not torch.is_grad_enabled():
        return operation(x, W, b)
    refuse_transforms()
    return pathway.apply(operation, x, W, b, state)


class PlasticTap(torch.autograd.Function):
    """The identity on a raw weight, whose gradient it also hands to the plastic state.

    Used where a layer computes its effective weight from the raw one (weight standardisation, say):
    the state then follows the raw weight.
    """

    @staticmethod
    def forward(ctx: Any, pathway: Pathway[Any], W: Tensor, *state: Tensor | None) -> Tensor:
        """Return `W`."""
        ctx.pathway = pathway
        ctx.save_for_backward(*state)
        return W.view_as(W)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradient of `W` and that of each state tensor, if `W` learns."""
        refuse_second_derivative()
        pathway = ctx.pathway
        learned = None
        if ctx.needs_input_grad[1]:
            learned = pathway.plastic_gradient(gradients[0], pathway.state_of(ctx.saved_tensors))
        return None, gradients[0], *gradients_of_state(pathway, learned)
