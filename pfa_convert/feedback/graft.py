"""The feedback pass for any function that is linear in a weight: two branches, one output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pfa_convert.feedback.guards import refuse_second_derivative, refuse_transforms, unviewed

Call = tuple[tuple[Any, ...], dict[str, Any]]


def graft(function: Callable[..., Any], with_weight: Call, with_feedback: Call) -> Tensor:
    """Return `function` of the first arguments, whose error also goes back through the second.

    The first hold the weight, and activations that are detached; the second the feedback weight, detached,
    and the activations. So the weight learns as ever, and the error below goes through `F`. The function
    is computed twice; a compiler leaves the second out, since its output is not used.

    Raises:
        RuntimeError: under `torch.func` transforms; in the backward pass, for a second derivative.
    """
    refuse_transforms()
    output = function(*with_weight[0], **with_weight[1])
    twin = function(*with_feedback[0], **with_feedback[1])
    grafted: Tensor = Graft.apply(output, twin)
    return grafted


class Graft(torch.autograd.Function):
    """The first of two tensors; the error goes to both."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, twin: Tensor) -> Tensor:
        """Return the output."""
        # A view of an input could not be changed in place by what comes after.
        return output.view_as(output) if torch.compiler.is_compiling() else unviewed(output)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Any, ...]:
        """Return the error twice."""
        refuse_second_derivative()
        return deltas[0], deltas[0]
