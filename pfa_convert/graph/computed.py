"""Weights that a forward computes: their shapes, and where the dimensions of those they come from are.

Nothing but shapes is computed, and that of weights and constants alone: on the meta device, where a tensor
has no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pfa_convert.feedback.calls import at
from pfa_convert.feedback.layout import ProductLayout, WeightLayout
from pfa_convert.feedback.lookup import NO_AXIS
from pfa_convert.feedback.products import Product, operand_layout
from pfa_convert.feedback.roles import tensordot_roles
from pfa_convert.graph.trace import is_plain_function
from pfa_convert.graph.values import Value

Axes = tuple[int, ...]


def without_memory(tensor: Any) -> Tensor | None:
    """Return a tensor of the same shape on the meta device; None for what has no shape yet."""
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    except (AttributeError, RuntimeError):
        return None


def result_like(function: Any, node: fx.Node, values: Mapping[fx.Node, Value]) -> Tensor | None:
    """Return a tensor like the one that a node computes from weights and constants, where that can be told.

    A function of the user's own is not called: it could have effects.
    """
    inputs = [values[entry] for entry in node.all_input_nodes]
    if is_plain_function(function) or any(v.activation or v.like is None for v in inputs):
        return None
    args = map_arg(node.args, lambda entry: _fresh(values[entry]))
    kwargs = map_arg(node.kwargs, lambda entry: _fresh(values[entry]))
    try:
        with torch.no_grad():
            result = function(*args, **kwargs)
    except Exception:  # whatever does not run without values has no shape that is known
        return None
    return result if isinstance(result, Tensor) and result.is_meta else None


def _fresh(value: Value) -> Tensor | None:
    """Return a tensor that a function may write to."""
    return without_memory(value.like)


def product_of_weights(
    product: Product, node: fx.Node, factors: Sequence[Value], like: Tensor | None
) -> Value:
    """Return the value of a product of weights alone, from the values of its operands."""
    paths = [path for value in factors for path in value.paths]
    kept = _kept(product, node, [value.dimensions for value in factors], like) if like is not None else None
    if like is None or kept is None:
        return Value(frozenset(paths), like=like)
    several = Counter(paths)
    own = {
        path: tuple(axis if axis == NO_AXIS else axes[axis] for axis in axes_of_result)
        for value, axes_of_result in zip(factors, kept, strict=True)
        for path in sorted(value.paths)
        if several[path] == 1 and (axes := _in_full(value, path)) is not None
    }
    axes = tuple(range(like.dim())) if own else None
    return Value(frozenset(paths), axes, factors=tuple(own.items()), like=like)


def _in_full(value: Value, path: str) -> Axes | None:
    """Return the Parameter's dimensions in a value's order, also of new ones in front, as of `W[None]`."""
    axes, dimensions = value.axes_of(path), value.dimensions or 0
    if axes is None or len(axes) > dimensions:
        return None
    return (*(NO_AXIS,) * (dimensions - len(axes)), *axes)


def layout_of_factor(
    product: Product,
    index: int,
    path: str,
    value: Value,
    shape: tuple[int, ...],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> WeightLayout:
    """Return the layout of a Parameter from which a product's operand number `index` is computed.

    One that has none of the outputs, as `A` of `B @ A`, counts as a weight of its own shape.
    """
    layout = operand_layout(product, index, shape, args, kwargs, value.axes_of(path))
    if value.factors and isinstance(layout, ProductLayout) and not layout.has_any_outputs:
        return operand_layout(product, index, shape, args, kwargs)
    return layout


def _kept(
    product: Product, node: fx.Node, dimensions: Sequence[int | None], like: Tensor
) -> list[Axes] | None:
    """Return for each operand which of its dimensions is in each place of the result."""
    slots = product.slots(node.args, node.kwargs)
    sizes = [size for size in dimensions if size is not None]
    if len(sizes) != len(slots) or not all(isinstance(at(s, node.args, node.kwargs), fx.Node) for s in slots):
        return None
    return _KEPT[product.name](node, sizes, like.dim()) if product.name in _KEPT else None


def _kept_by_einsum(node: fx.Node, sizes: Sequence[int], dimensions: int) -> list[Axes] | None:
    equation = node.args[0]
    if not isinstance(equation, str) or "..." in equation:
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    shown = (
        right if arrow else "".join(sorted(label for label in set(left) - {","} if left.count(label) == 1))
    )
    return [tuple(labels.find(label) for label in shown) for labels in left.split(",")]  # -1 is NO_AXIS


def _kept_by_matmul(node: fx.Node, sizes: Sequence[int], dimensions: int) -> list[Axes] | None:
    if min(sizes) < 2:
        return None
    return [
        tuple(
            place + size if place + size >= 0 and place != summed else NO_AXIS
            for place in range(-dimensions, 0)
        )
        for size, summed in zip(sizes, (-1, -2), strict=True)
    ]


def _kept_by_tensordot(node: fx.Node, sizes: Sequence[int], dimensions: int) -> list[Axes] | None:
    summed = [tensordot_roles(index, size, node.args, node.kwargs).inputs for index, size in enumerate(sizes)]
    first, second = (
        tuple(d for d in range(size) if d not in gone) for size, gone in zip(sizes, summed, strict=True)
    )
    return [(*first, *(NO_AXIS,) * len(second)), (*(NO_AXIS,) * len(first), *second)]


_KEPT: dict[str, Callable[[fx.Node, Sequence[int], int], list[Axes] | None]] = {
    "einsum": _kept_by_einsum,
    "tensordot": _kept_by_tensordot,
    **dict.fromkeys(("matmul", "mm", "bmm"), _kept_by_matmul),
}
