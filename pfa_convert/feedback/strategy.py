"""How a feedback weight is computed, and why so: the one home of what reports and `couple` say of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Strategy(str, Enum):
    """The ways to compute a rule's feedback weight."""

    NATIVE = "native"
    """The plain operation: `F = W`."""
    FIXED = "fixed"
    """`F` is a function of `W` and of state that no gradient reaches."""
    EXPLICIT = "explicit"
    """The literal way through the middle population, whose plastic weight learns from activity."""
    FUSED = "fused"
    """The plastic weight is a Parameter, with the gradient `A(dL/dW)`."""
    COLLAPSED = "collapsed"
    """`F = T(W) + s K`, without the plastic weight."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Choice:
    """A strategy and why it is the one; as text `collapsed` or `fused: asked for by name`."""

    strategy: Strategy
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.strategy}: {self.reason}" if self.reason else str(self.strategy)
