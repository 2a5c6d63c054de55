"""What the dimensions of an operand are in each of PyTorch's products.

Each function tells it of operand number `index`, which has so many `dimensions`, from the call's arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pfa_convert.feedback.calls import argument


@dataclass(frozen=True)
class Roles:
    """What the dimensions of an operand are: summed over with another operand, or repeated (`batch`).

    Negative numbers count from the last.
    """

    inputs: tuple[int, ...]
    batch: tuple[int, ...] = ()


def matmul_roles(index: int, dimensions: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Roles:
    """Return those of `(*batch, N_out, N_in) @ (*batch, N_in, N_out)`, `(N_in,)` on either side."""
    if dimensions == 1:
        return Roles((0,))
    summed = dimensions - 1 if index == 0 else dimensions - 2
    return Roles((summed,), tuple(range(dimensions - 2)))


def reversed_matmul_roles(index: int, dimensions: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Roles:
    """Return those of `other @ input`, with the operands as in `input, other`."""
    return matmul_roles(1 - index, dimensions, args, kwargs)


def einsum_roles(index: int, dimensions: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Roles | None:
    """Return those that the equation tells; None where operands and their dimensions take turns instead."""
    if not isinstance(args[0], str):
        return None
    left, arrow, right = args[0].replace(" ", "").partition("->")
    operands = left.split(",")
    mine = operands[index]
    if "..." in mine:
        before, _, after = mine.partition("...")
        ellipsis = [f"...{n}" for n in range(dimensions - len(before) - len(after))]
        labels = [*before, *ellipsis, *after]
    else:
        labels = list(mine)
    others = set("".join(operands[:index] + operands[index + 1 :]))
    shown = set(right) if arrow else {label for label in left if left.count(label) == 1}
    numbered = list(enumerate(labels, start=-len(labels)))
    inputs = tuple(d for d, label in numbered if label not in shown and label[0] != ".")
    batch = tuple(d for d, label in numbered if label[0] == "." or (label in shown and label in others))
    return Roles(inputs, batch)


def sums_with_others(equation: str, index: int) -> bool:
    """Say whether an einsum sums over a dimension that operand number `index` shares with another."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    others = set("".join(operands[:index] + operands[index + 1 :]))
    shown = set(right) if arrow else {label for label in left if left.count(label) == 1}
    return any(label in others and label not in shown for label in operands[index].replace("...", ""))


def tensordot_roles(index: int, dimensions: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Roles:
    """Return those that `dims` tells."""
    dims = argument(args, kwargs, 2, "dims", 2)
    if isinstance(dims, int):
        summed = list(range(dimensions - dims, dimensions) if index == 0 else range(dims))
    else:
        summed = [d % dimensions for d in dims[index]]
    return Roles(tuple(summed))


def conv_tbc_roles(index: int, dimensions: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Roles:
    """Return those of the weight `(k, N_in, N_out)`."""
    return Roles((0, 1))


def inner_roles(index: int, dimensions: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Roles:
    """Return those of a sum over the last dimension."""
    return Roles((dimensions - 1,))
