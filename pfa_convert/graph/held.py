"""What values hold: the entries of containers, and the attributes of a user's own objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from types import ModuleType
from typing import Any

from torch import fx, nn

NEWEST = 100
"""So many entries of each container are looked at, the newest first."""


def held(values: Iterable[Any], most: int) -> Iterator[Any]:
    """Yield values and what they hold, in no more than `most` steps; what is PyTorch's is not looked into."""
    waiting, seen = deque(values), set[int]()
    while waiting and most > 0:
        most -= 1
        value = waiting.popleft()
        yield value
        if id(value) not in seen:
            seen.add(id(value))
            waiting.extend(_inside(value))


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        return islice(reversed(value.values()), NEWEST)
    if isinstance(value, list | tuple | deque):
        return islice(reversed(value), NEWEST)
    of_torch = isinstance(value, nn.Module | fx.Proxy) or type(value).__module__.startswith("torch")
    if of_torch or isinstance(value, type | ModuleType):
        return iter(())
    return iter(getattr(value, "__dict__", {}).values())
