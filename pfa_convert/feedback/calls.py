"""The arguments of a call of PyTorch's: finding one, finding the tensors among them, replacing those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

Slot = tuple[Any, ...]
"""Where an operand stands in a call: `(position,)`, `(keyword,)`, or a list's slot and the index in it."""


def at(slot: Slot, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what a call has in a slot."""
    first, *rest = slot
    value = kwargs[first] if isinstance(first, str) else args[first]
    return value[rest[0]] if rest else value


def argument(args: Sequence[Any], kwargs: dict[str, Any], position: int, keyword: str, default: Any) -> Any:
    """Return an argument of a call, however it was given."""
    if position < len(args):
        return args[position]
    return kwargs.get(keyword, default)


def tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a call, and those in its lists."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            for entry in value:
                if isinstance(entry, Tensor):
                    yield entry


def replaced(
    args: Sequence[Any], kwargs: dict[str, Any], replace: Callable[[Tensor], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments with each tensor, also in lists, replaced."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return replace(value)
        if isinstance(value, list | tuple) and any(isinstance(entry, Tensor) for entry in value):
            entries = [replace(entry) if isinstance(entry, Tensor) else entry for entry in value]
            return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
        return value

    return tuple(of(value) for value in args), {key: of(value) for key, value in kwargs.items()}
