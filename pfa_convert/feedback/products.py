"""PyTorch's functions that are linear in a learned operand: which operands they multiply, and how.

One table serves the search for sites in a graph and the redirection of calls at run time. What is not in
it, such as an elementwise product, is no linear map from one set of neurons to another.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pfa_convert.feedback.calls import Slot, argument
from pfa_convert.feedback.layout import WeightLayout, product_layout
from pfa_convert.feedback.lookup import NO_AXIS
from pfa_convert.feedback.roles import (
    Roles,
    conv_tbc_roles,
    einsum_roles,
    inner_roles,
    matmul_roles,
    reversed_matmul_roles,
    sums_with_others,
    tensordot_roles,
)


@dataclass(frozen=True)
class Product:
    """A function of PyTorch's that multiplies operands.

    Args:
        name: what it is called in a report.
        operands: position and keyword of each operand.
        roles: tells the roles of an operand's dimensions; it, or what it returns, is None for a weight whose
            first dimension is that of the outputs.
        weight: the number of the operand that is a weight by its name, as in `linear` and `convNd`.
    """

    name: str
    operands: tuple[tuple[int, str], ...]
    roles: Callable[[int, int, Sequence[Any], dict[str, Any]], Roles | None] | None = None
    weight: int | None = None

    def slots(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Slot]:
        """Return where the operands of a call stand; fewer if some were not given."""
        if self.name == "chain_matmul":
            return [(index,) for index in range(len(args))]
        if self.name == "multi_dot":
            return [(0, index) for index in range(len(args[0]))]
        if self.name == "einsum":
            if len(args) == 2 and isinstance(args[1], list | tuple):
                return [(1, index) for index in range(len(args[1]))]
            return [(index,) for index in range(1, len(args))]
        slots: list[Slot] = []
        for position, keyword in self.operands:
            if position < len(args):
                slots.append((position,))
            elif keyword in kwargs:
                slots.append((keyword,))
        return slots


def _product(name: str, *operands: tuple[int, str], roles: Any = None, weight: int | None = None) -> Product:
    return Product(name, operands, roles, weight)


_LINEAR = _product("linear", (0, "input"), (1, "weight"), weight=1)
_MATMUL = _product("matmul", (0, "input"), (1, "other"), roles=matmul_roles)
_RMATMUL = _product("matmul", (0, "input"), (1, "other"), roles=reversed_matmul_roles)
_MM = {
    name: _product(name, (0, "input"), (1, "mat2" if name != "mv" else "vec"), roles=matmul_roles)
    for name in ("mm", "bmm", "mv")
}
_ADDED = {
    name: _product(name, (1, first), (2, second), roles=matmul_roles)
    for name, first, second in (
        ("addmm", "mat1", "mat2"),
        ("addmv", "mat", "vec"),
        ("baddbmm", "batch1", "batch2"),
        ("addbmm", "batch1", "batch2"),
    )
}
_EINSUM = _product("einsum", roles=einsum_roles)
_TENSORDOT = _product("tensordot", (0, "a"), (1, "b"), roles=tensordot_roles)
_CONVOLUTIONS = {
    name: _product(name, (0, "input"), (1, "weight"), weight=1)
    for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
}
_CONVOLUTION = _product("convolution", (0, "input"), (1, "weight"), weight=1)
_GROUPED = _product("grouped_mm", (0, "mat_a"), (1, "mat_b"), roles=matmul_roles)
_BILINEAR = _product("bilinear", (0, "input1"), (1, "input2"), (2, "weight"), weight=2)


def _table() -> dict[Any, Product]:
    aten = torch.ops.aten
    table: dict[Any, Product] = {
        functional.linear: _LINEAR,
        functional.bilinear: _BILINEAR,
        torch.bilinear: _BILINEAR,
        torch.convolution: _CONVOLUTION,
        torch._convolution: _CONVOLUTION,
        aten.convolution: _CONVOLUTION,
        aten.convolution.default: _CONVOLUTION,
        aten.linear: _LINEAR,
        aten.linear.default: _LINEAR,
        torch.einsum: _EINSUM,
        aten.einsum: _EINSUM,
        torch.tensordot: _TENSORDOT,
        operator.matmul: _MATMUL,
        torch.linalg.matmul: _MATMUL,
        Tensor.__matmul__: _MATMUL,
        Tensor.__rmatmul__: _RMATMUL,
        torch.dot: _product("dot", (0, "input"), (1, "tensor"), roles=matmul_roles),
        Tensor.dot: _product("dot", (0, "input"), (1, "tensor"), roles=matmul_roles),
        torch.inner: _product("inner", (0, "input"), (1, "other"), roles=inner_roles),
        Tensor.inner: _product("inner", (0, "input"), (1, "other"), roles=inner_roles),
    }
    for name, product in (_MM | _ADDED | {"matmul": _MATMUL}).items():
        packet = getattr(aten, name)
        for call in (getattr(torch, name), getattr(Tensor, name), packet, packet.default):
            table[call] = product
    for home, name in ((torch, "_grouped_mm"), (functional, "grouped_mm"), (aten, "_grouped_mm")):
        if hasattr(home, name):
            table[getattr(home, name)] = _GROUPED
    table[torch.chain_matmul] = _product("chain_matmul", roles=matmul_roles)
    table[torch.linalg.multi_dot] = _product("multi_dot", roles=matmul_roles)
    table[torch.sparse.mm] = _product("sparse_mm", (0, "mat1"), (1, "mat2"), roles=matmul_roles)
    table[torch.conv_tbc] = _product("conv_tbc", (0, "input"), (1, "weight"), roles=conv_tbc_roles)
    for name, product in _CONVOLUTIONS.items():
        packet = getattr(aten, name)
        for call in (getattr(torch, name), packet, *(getattr(packet, o) for o in packet.overloads())):
            table[call] = product
    return table


PRODUCTS = _table()
"""For each of PyTorch's calls that multiply operands, what it is."""


def product_of(call: Any) -> Product | None:
    """Return what a call multiplies, or None; torchvision's operations are known by name, without import."""
    product = PRODUCTS.get(call)
    if product is None and getattr(call, "__name__", "") in ("deform_conv2d", "deform_conv2d.default"):
        return _DEFORM_FUNCTION if isinstance(call, FunctionType) else _DEFORM
    return product


def is_scale(product: Product, index: int, args: Sequence[Any]) -> bool:
    """Say whether an operand shares no dimension that a call sums over: it scales, and is no linear map."""
    return product.name == "einsum" and isinstance(args[0], str) and not sums_with_others(args[0], index)


def operand_layout(
    product: Product,
    index: int,
    shape: tuple[int, ...],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    axes: tuple[int, ...] | None = None,
) -> WeightLayout:
    """Return the layout of a Parameter of this shape that a call multiplies as operand number `index`.

    `axes` are the Parameter's dimensions in the order in which the operand has them, its last ones at least;
    None where the operand is computed such that it cannot be said. Then it counts as a weight of the
    Parameter's shape. A dimension that is gone, as the first of `W[expert]`, counts as repeated: each of the
    matrices is a weight.
    """
    as_it_is = axes is None or axes == tuple(range(len(shape)))
    convolution = product.name.startswith(("conv", "deform")) and len(shape) > 2
    if convolution and index == product.weight and as_it_is:
        transposed = is_transposed(product, args, kwargs)
        groups = _known_groups(groups_of(product, args, kwargs), shape, transposed)
        return WeightLayout(shape, groups, transposed)
    if not axes:
        return _as_it_is(shape)
    roles = _roles(product, index, len(axes), args, kwargs)
    inputs, repeated = (_among(axes, dimensions) for dimensions in (roles.inputs, roles.batch))
    gone = set(range(len(shape))) - set(axes)
    return product_layout(shape, inputs, tuple(sorted({*repeated, *gone}))) if inputs else _as_it_is(shape)


def _as_it_is(shape: tuple[int, ...]) -> WeightLayout:
    return WeightLayout(shape) if len(shape) > 1 else product_layout(shape, (0,), ())


def _among(axes: tuple[int, ...], dimensions: Sequence[int]) -> tuple[int, ...]:
    """Return which of a Parameter's dimensions an operand's are, of those that are any."""
    size = len(axes)
    return tuple(sorted({axes[d] for d in dimensions if -size <= d < size} - {NO_AXIS}))


def _roles(product: Product, index: int, size: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Roles:
    """Return the roles of an operand's dimensions, of which `size` are known."""
    roles = product.roles(index, size, args, kwargs) if product.roles else None
    if roles is not None:
        return roles
    first = -_DIMENSIONS.get(product.name, size)
    inputs = tuple(range(first + 1, 0)) or (-1,)  # a vector has one output
    if is_transposed(product, args, kwargs):
        inputs = (first, *range(first + 2, 0))
    grouped = product.weight is not None and groups_of(product, args, kwargs) != 1
    return Roles(inputs, (first,) if grouped else ())  # it is not known which outputs belong together


_DIMENSIONS = {"linear": 2, **{name: int(name[-2]) + 2 for name in _CONVOLUTIONS}}
"""How many dimensions a weight has in these products' place for it."""


def is_transposed(product: Product, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Say whether a call of a convolution, or of `linear`, is transposed."""
    if product.name == "convolution":
        return bool(argument(args, kwargs, 6, "transposed", False))
    return "transpose" in product.name


def groups_of(product: Product, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return a call's number of groups, 1 for `linear`; in a graph perhaps a node that computes it."""
    if product.name == "linear":
        return 1
    position = {"convolution": 8, "deform_conv2d": 10}.get(product.name, 6)
    return argument(args, kwargs, position, "groups", 1)


def _known_groups(groups: Any, shape: tuple[int, ...], transposed: bool) -> int:
    """Return the groups of a convolution's weight.

    Where a graph computes them, it is not known which outputs belong together: each is on its own. A
    transposed convolution's weight has the outputs of one group only, to each input.
    """
    if not isinstance(groups, int):
        return 1 if transposed else shape[0]
    return groups if groups > 0 and shape[0] % groups == 0 else 1


_DEFORM = _product("deform_conv2d", (0, "input"), (1, "weight"), (2, "offset"), (3, "mask"), weight=1)
_DEFORM_FUNCTION = _product(
    "deform_conv2d", (0, "input"), (2, "weight"), (1, "offset"), (6, "mask"), weight=1
)
