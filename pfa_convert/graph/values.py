"""What is known of the value of a graph's node, and of several together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Value:
    """What a node computes.

    `paths` are the Parameters it comes from; none are a constant's. `axes` are the Parameter's dimensions in
    the value's order, None where that cannot be said. `mixed` says that it is a weight which activations have
    scaled, `activation` that they took part.
    """

    paths: frozenset[str] = frozenset()
    axes: tuple[int, ...] | None = None
    mixed: bool = False
    activation: bool = False

    @property
    def learned(self) -> bool:
        """Whether it is computed from weights alone."""
        return bool(self.paths) and not self.mixed


ACTIVATION = Value(activation=True)
CONSTANT = Value()


def leaves(structure: Any) -> list[Value]:
    """Return the values in a structure, without the plain data in it."""
    return [leaf for leaf in tree_leaves(structure) if isinstance(leaf, Value)]


def whole(structure: Any) -> Value:
    """Return what several values are together: those of a list, or of several ways through a forward."""
    values = set(leaves(structure))
    if len(values) == 1:
        return next(iter(values))
    paths = frozenset(path for value in values for path in value.paths)
    activation = any(value.activation for value in values)
    return Value(paths, mixed=bool(paths) and activation, activation=activation)
