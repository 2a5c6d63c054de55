"""What is known of the value of a graph's node, and of several together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from pfa_convert.feedback.lookup import NO_AXIS


@dataclass(frozen=True)
class Value:
    """What a node computes.

    `paths` are the Parameters it comes from; none are a constant's. `axes` are the Parameter's dimensions in
    the value's order, None where that cannot be said. Where several were multiplied, they are those of the
    product, and `factors` has for each Parameter which of its own these were. `mixed` says that it is a
    weight which activations have scaled, `activation` that they took part, `written` that weights, or nothing
    but activations, were written into it in place, `left` that an earlier call computed it of weights.
    `layers` are the last of those that made an activation of Parameters and constants alone. `like` is a
    tensor without memory (on the meta device) of the value's shape, where that is known.
    """

    paths: frozenset[str] = frozenset()
    axes: tuple[int, ...] | None = None
    mixed: bool = False
    activation: bool = False
    written: bool = False
    left: bool = False
    layers: frozenset[str] = frozenset()
    factors: tuple[tuple[str, tuple[int, ...]], ...] = ()
    like: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def dimensions(self) -> int | None:
        """How many dimensions it has, None where that is not known."""
        if self.like is not None:
            return self.like.dim()
        return None if self.axes is None else len(self.axes)

    def axes_of(self, path: str) -> tuple[int, ...] | None:
        """Return one Parameter's dimensions in the value's order; None where that cannot be said."""
        if not self.factors:
            return self.axes if len(self.paths) == 1 else None
        own = dict(self.factors).get(path)
        if own is None or self.axes is None:
            return None
        return tuple(axis if axis == NO_AXIS else own[axis] for axis in self.axes)

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
    found = leaves(structure)
    values = set(found)
    if len(values) == 1:
        shapes = {None if value.like is None else value.like.shape for value in found}
        return found[0] if len(shapes) == 1 else replace(found[0], like=None)
    paths = frozenset(path for value in values for path in value.paths)
    activation = any(value.activation for value in values)
    return Value(paths, mixed=bool(paths) and activation, activation=activation, layers=layers_of(values))


def layers_of(values: Iterable[Value]) -> frozenset[str]:
    """Return the layers that made the activations among values; none if one of these is a signal."""
    made = [value.layers for value in values if value.activation]
    return frozenset[str]().union(*made) if all(made) else frozenset()
