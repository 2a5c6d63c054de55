"""The one autograd function behind every rule: the layer's own forward, a backward through `F`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pfa_convert.feedback.operations import Operation

if TYPE_CHECKING:
    from pfa_convert.feedback.pathway import Pathway


def apply_feedback(
    operation: Operation, pathway: Pathway, x: Tensor, W: Tensor, b: Tensor | None, state: tuple[Tensor, ...]
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
    _refuse_transforms()
    return pathway.apply(operation, x, W, b, state)


def prepared(x: Tensor, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the operands in the dtype in which the plain operation would take them."""
    return _autocast(x), _autocast(W), b if b is None else _autocast(b)


def _autocast(tensor: Tensor) -> Tensor:
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):  # meta, say
        return tensor
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


class FeedbackPass(torch.autograd.Function):
    """Forward: the plain operation. Backward: `dL/dW`, `dL/db` as ever, `dL/dx` through `F`."""

    @staticmethod
    def forward(
        ctx: Any,
        operation: Operation,
        pathway: Pathway,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        *state: Tensor,
    ) -> Tensor:
        """Compute the output and keep what the plain layer keeps; `F` is made in the backward pass."""
        ctx.operation, ctx.pathway = operation, pathway
        ctx.save_for_backward(x, W, *state)
        return no_view(operation(x, W, b))

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Any, ...]:
        """Send `delta = dL/dy` down."""
        refuse_second_derivative()
        x, W, *state = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        gradients = ctx.pathway.backward(ctx.operation, deltas[0], x, W, tuple(state), needs)
        return None, None, *gradients


def no_view(y: Tensor) -> Tensor:
    """Return the same memory as a tensor of its own.

    PyTorch's linear returns a view of its result for inputs of three dimensions, and autograd forbids
    in-place activations on a view that a custom function made.
    """
    if torch.compiler.is_compiling() or not y._is_view():
        return y
    return unviewed(y)


def unviewed(y: Tensor) -> Tensor:
    """Return the same memory as a tensor that autograd does not know as a view."""
    same: Tensor = torch.ops.aten._unsafe_view(y, y.shape)
    return same


class PlasticTap(torch.autograd.Function):
    """The identity on a raw weight, whose gradient it also hands to the plastic state.

    Used where a layer computes its effective weight from the raw one (weight standardisation, say):
    the state then follows the raw weight.
    """

    @staticmethod
    def forward(ctx: Any, pathway: Pathway, W: Tensor, *state: Tensor) -> Tensor:
        """Return `W`."""
        ctx.pathway = pathway
        ctx.save_for_backward(*state)
        return W.view_as(W)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradient of `W` and that of each state tensor."""
        refuse_second_derivative()
        return None, gradients[0], *ctx.pathway.state_gradients(gradients[0], *ctx.saved_tensors)


def _refuse_transforms() -> None:
    """Raise under `vmap`, `grad` and the like, which differentiate the forward pass themselves."""
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "torch.func's transforms do not know feedback weights: take gradients with backward or "
            "torch.autograd.grad, transform under torch.no_grad(), or give the layer the rule 'bp'"
        )


def refuse_second_derivative() -> None:
    """Raise if the backward pass that is running is itself being recorded."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "a layer with a feedback weight has no second derivative: its backward pass is not the "
            "derivative of its forward pass. Call backward without create_graph=True, or give the layer "
            "the rule 'bp'"
        )
