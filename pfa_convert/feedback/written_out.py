"""A product that is written as a multiplication element by element and a sum: `(x * W).sum(-1)`.

It is known for one at the sum. The elements that were multiplied before are multiplied again there, with the
feedback weight for the error; so nothing may have been written into them in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfa_convert.feedback.calls import argument
from pfa_convert.feedback.functions import plain_name
from pfa_convert.feedback.products import Product
from pfa_convert.feedback.roles import Roles


class Multiplied:
    """A call that multiplied two operands element by element, and its result."""

    def __init__(self, function: Callable[..., Tensor], factors: tuple[Any, ...], result: Tensor) -> None:
        self.factors = factors
        self._function = function
        self._result = result
        self._version = _version(result)

    def summed(
        self, function: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Callable[..., Tensor] | None:
        """Return what makes a sum of the result from the factors; None where that sum is no product."""
        if _version(self._result) != self._version or not self._sums_over_both(dims_of(args, kwargs)):
            return None
        return lambda *factors: function(self._function(*factors), *args[1:], **kwargs)

    def _sums_over_both(self, dims: Sequence[int] | None) -> bool:
        """Say whether a sum is over a dimension that both factors have more than once."""
        dimensions = self._result.dim()
        summed = range(dimensions) if dims is None else [dim % dimensions for dim in dims]
        shapes = [(*(1,) * (dimensions - factor.dim()), *factor.shape) for factor in self.factors]
        return any(all(shape[dim] > 1 for shape in shapes) for dim in summed)


def multiplied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Multiplied | None:
    """Return what is to be known of a call that multiplies two tensors; None of any other."""
    tensors = len(args) == 2 and all(isinstance(factor, Tensor) for factor in args)
    if not tensors or kwargs or not is_multiplication(func):
        return None
    return Multiplied(func, args, result)


def is_multiplication(func: Any) -> bool:
    """Say whether a function multiplies two operands element by element, into a new tensor."""
    return plain_name(func) in ("mul", "rmul")


def is_sum(func: Any) -> bool:
    """Say whether a function sums over dimensions, or takes the mean."""
    return plain_name(func) in ("sum", "mean")


def dims_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[int] | None:
    """Return the dimensions that a call of `sum` or `mean` sums over, None for all of them."""
    dims = argument(args, kwargs, 1, "dim", kwargs.get("axis"))
    return [dims] if isinstance(dims, int) else dims or None


def may_sum_over(shape: Sequence[int] | None, dims: Sequence[int] | None) -> bool:
    """Say whether a sum can be over a dimension that an operand has more than once.

    Counted from the first, a dimension could be any of an operand's, but for one of a single dimension: that
    is the last, which nobody counts so.
    """
    if shape is None or dims is None:
        return shape is None or any(size > 1 for size in shape)
    if not all(isinstance(dim, int) and dim < 0 for dim in dims):
        return len(shape) > 1 and any(size > 1 for size in shape)
    return any(-len(shape) <= dim and shape[dim] > 1 for dim in dims)


def written_out(dims: Sequence[int] | None) -> Product:
    """Return the product whose terms are summed over these dimensions."""
    return Product("mul().sum", ((0, "input"), (1, "other")), partial(_roles, dims))


def _roles(
    dims: Sequence[int] | None, index: int, dimensions: int, args: Sequence[Any], kwargs: dict[str, Any]
) -> Roles | None:
    """Return those of an operand's dimensions: what is not summed over is repeated.

    Counted from the first, it is not known which they are, since the other operand may have more.
    """
    if dims is None or not all(isinstance(dim, int) and -dimensions <= dim < 0 for dim in dims):
        return None
    return Roles(tuple(dims), tuple(dim for dim in range(-dimensions, 0) if dim not in dims))


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to, which a compiler cannot be asked."""
    return 0 if torch.compiler.is_compiling() else tensor._version
