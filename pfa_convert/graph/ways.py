"""The ways through a forward whose branches depend on values: each is traced by itself.

A graph is only read for what it applies, so a branch that is never taken does no harm; one that is not
traced would hide its weights.
"""

from __future__ import annotations

import linecache
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.proxy import TraceError

MOST_WAYS = 12
MOST_DECISIONS = 64
"""In one way: what loops for as long as a value says has no end when it is traced."""

VALUES = "its forward depends on the values or shapes of its input"

Way = tuple[bool, ...]


class Choices:
    """What a condition on a traced value is taken for: as a way says, and false after that."""

    def __init__(self, way: Way, may_choose: bool = True) -> None:
        self.taken: list[bool] = []
        self._way = way
        self._most = MOST_DECISIONS if may_choose else 0
        self._asked: list[Any] = []
        self._repeated: defaultdict[Any, deque[bool]] | None = None

    def __call__(self, where: Any = None, likely: bool = False) -> bool:
        """Decide the next condition.

        Args:
            where: tells the place in the code that asks.
            likely: what a condition is taken for in a next call, if the first did not ask it.

        Raises:
            TraceError: if it is one too many.
        """
        if self._repeated is not None:
            self._most -= 1
            if self._most < 0:
                raise TraceError(VALUES)
            return self._repeated[where].popleft() if self._repeated[where] else likely
        self._asked.append(where)
        index = len(self.taken)
        if index == self._most:
            raise TraceError(VALUES)
        self.taken.append(self._way[index] if index < len(self._way) else False)
        return self.taken[-1]

    def repeat(self) -> None:
        """Decide all again as in the first call, place by place: a next call makes no more ways."""
        self._most = MOST_DECISIONS
        self._repeated = defaultdict(deque)
        for where, taken in zip(self._asked, self.taken, strict=False):
            self._repeated[where].append(taken)


@dataclass(frozen=True)
class Traced:
    """The graph of one way, up to the error that ended it, and what was decided on it."""

    graph: fx.Graph
    taken: Way
    error: Exception | None

    @property
    def whole(self) -> bool:
        """Whether the way was followed to its end, which may be an error that the forward itself raises."""
        return self.error is None or _raised_by_the_forward(self.error)


def follow_ways(trace: Callable[[Choices], Traced], most: int = MOST_WAYS) -> tuple[list[Traced], bool]:
    """Trace one way after another; return them, those without an error first, and whether that is all.

    Where a way ends with an error of the forward's own, as in `if length > most: raise`, the next one differs
    in the last condition before it.
    """
    waiting: deque[Way] = deque([()])
    ways: list[Traced] = []
    while waiting and len(ways) < most:
        way = waiting.popleft()
        traced = trace(Choices(way, most > 1))
        ways.append(traced)
        others = [(*traced.taken[:index], True) for index in range(len(way), len(traced.taken))]
        if traced.error is not None and others:
            waiting.appendleft(others.pop())
        waiting.extend(others)
    ways.sort(key=lambda traced: traced.error is not None)
    return ways, not waiting


def _raised_by_the_forward(error: Exception) -> bool:
    """Say whether a `raise` or an `assert` of the user's code ended a tracing."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = last.line or linecache.getline(last.filename, last.lineno or 0)
    return not isinstance(error, TraceError) and line.strip().startswith(("raise", "assert"))
