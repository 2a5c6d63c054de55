"""What an index takes from a weight: rows of a table, or whole matrices of a stack (`W[experts]`).

A weight of shape `(experts, N_out, N_in)`, of which a router has some looked up, is a stack of weights: each
matrix is applied as it is. A row of a table of two dimensions is a signal instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pfa_convert.feedback.calls import argument

NO_AXIS = -1
"""A dimension that is none of the weight's, in the order of those of what is computed from it."""

ALONG_A_DIMENSION = frozenset(["index_select", "gather"])
"""Functions that look up along one dimension; `gather` does so with an index that was expanded."""


def looked_up_in(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what a call takes something out of."""
    return argument(args, kwargs, 0, "input", None)


def takes_matrices(name: str, arguments: Sequence[Any], kwargs: dict[str, Any], dimensions: int) -> bool:
    """Say whether a function leaves two or more dimensions of a weight, of so many, as they are.

    `name` is the function's; `arguments` are those behind the weight.
    """
    if name in ALONG_A_DIMENSION:
        return dimensions > 2
    if name != "getitem":
        return False
    entries = _in_full(arguments[0], dimensions)
    return entries is not None and sum(isinstance(entry, slice) for entry in entries) >= 2


def axes_of_item(index: Any, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the order of dimensions in `W[index]`, from that in `W`; None where it cannot be said.

    A number drops its dimension, a tensor puts its own, NO_AXIS each, in the place of the one that it looks
    up. What stands for a tensor in a graph counts as one of one dimension.
    """
    entries = _in_full(index, len(axes))
    if entries is None:
        return None
    kept = [
        (axis,) if isinstance(entry, slice) else (NO_AXIS,) * _dimensions_of(entry)
        for axis, entry in zip(axes, entries, strict=True)
    ]
    return tuple(axis for several in kept for axis in several)


def axes_along(dimension: Any, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the order of dimensions where that number `dimension` was looked up; None if it is no number."""
    if not isinstance(dimension, int):
        return None
    looked_up = dimension % len(axes)
    return tuple(NO_AXIS if place == looked_up else axis for place, axis in enumerate(axes))


def _in_full(index: Any, dimensions: int) -> list[Any] | None:
    """Return the index of each dimension; None where some are looked up together, or put between others.

    New dimensions in front, which a product repeats over, are left out.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    while entries and entries[0] is None:
        del entries[0]
    ellipses = [place for place, entry in enumerate(entries) if entry is Ellipsis]
    place = ellipses[0] if ellipses else len(entries)
    missing = dimensions - len(entries) + len(ellipses)
    entries[place : place + 1] = [slice(None)] * missing
    looked_up = [entry for entry in entries if not isinstance(entry, int | slice)]
    plain = len(looked_up) <= 1 and not any(entry is None or _is_mask(entry) for entry in looked_up)
    return entries if plain and missing >= 0 else None


def _is_mask(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.dtype is torch.bool and entry.dim() != 1


def _dimensions_of(entry: Any) -> int:
    if isinstance(entry, int):
        return 0
    return entry.dim() if isinstance(entry, Tensor) else 1
