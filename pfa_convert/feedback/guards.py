"""What stands before and behind the autograd functions: casts, views, and what they refuse."""

from __future__ import annotations

import torch
from torch import Tensor


def prepared(x: Tensor, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the operands in the dtype in which autocast would give them to the plain operation."""
    device = x.device.type
    # The compiler of PyTorch 2.11 cannot ask; every device that it compiles for has autocast.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    if not known or not torch.is_autocast_enabled(device):
        return x, W, b
    dtype = torch.get_autocast_dtype(device)
    return _cast(x, dtype), _cast(W, dtype), b if b is None else _cast(b, dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Complex numbers count as none of floating point, as autocast has it.
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if eligible else tensor


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
    same: Tensor = torch.ops.aten._unsafe_view(y, y.shape) if y.is_contiguous() else y.clone()
    return same


def refuse_transforms() -> None:
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
