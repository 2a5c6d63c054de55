"""What is known, while a forward runs, of the tensors that are Parameters or computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pfa_convert.feedback.written_out import Multiplied


class Learned:
    """A tensor that is a Parameter, or computed from Parameters.

    `mixed` says that activations took part (a mixture of expert weights): then it is a weight only for a
    function that has it in a weight's place. `axes` are a Parameter's dimensions in the tensor's order,
    None where that cannot be said. `direct` is the feedback state of a weight whose error does not come
    along `F` of its shape, but from the model's output. `multiplied` is the call that multiplied a weight
    element by element with something else, if a call made the tensor so.
    """

    def __init__(
        self,
        tensor: Any,
        sources: tuple[str, ...] = (),
        axes: tuple[int, ...] | None = None,
        mixed: bool = False,
        recompute: Callable[[], Any] | None = None,
        direct: Any = None,
    ) -> None:
        self.tensor = tensor
        self.sources = sources
        self.axes = axes
        self.mixed = mixed
        self.direct = direct
        self.multiplied: Multiplied | None = None
        self._recompute = recompute
        self._feedback: Tensor | None = None

    def feedback(self) -> Tensor:
        """Return the same function of the feedback weights, computed once."""
        if self._feedback is None:
            assert self._recompute is not None
            with torch.no_grad():
                computed = self._recompute()
            self._feedback = computed.detach() if isinstance(computed, Tensor) else computed
        return self._feedback

    def replace_feedback(self, feedback: Tensor) -> Tensor:
        """Have another tensor stand for this one; return it."""
        self._feedback = feedback
        return feedback

    def settle(self) -> None:
        """Compute `feedback` now, if it is computed from others."""
        if self._recompute is not None and self.direct is None:
            self.feedback()


class Operand(NamedTuple):
    """A weight among the operands of a product, and its number among them."""

    number: int
    weight: Learned


class Noted:
    """Tensors that something is known of, found by identity."""

    def __init__(self, noted: Iterable[Learned]) -> None:
        self._noted: list[Learned] = []
        self._by_id: dict[int, Learned] = {}
        for one in noted:
            self.add(one)

    def add(self, one: Learned) -> None:
        """Note a tensor."""
        # A compiler knows no number of a tensor that it has not seen yet.
        if torch.compiler.is_compiling():
            self._noted.append(one)
        else:
            self._by_id[id(one.tensor)] = one

    def remove(self, tensor: Any) -> None:
        """Take back what was noted of a tensor."""
        self._noted = [one for one in self._noted if one.tensor is not tensor]
        self._by_id.pop(id(tensor), None)

    def find(self, tensor: Any) -> Learned | None:
        """Return what is known of a tensor; None for one that was not noted."""
        if not torch.compiler.is_compiling():
            return self._by_id.get(id(tensor))
        for one in self:
            if one.tensor is tensor:
                return one
        return None

    def __iter__(self) -> Iterator[Learned]:
        return iter([*self._noted, *self._by_id.values()])

    def clear(self) -> None:
        """Let go of all tensors."""
        self._noted.clear()
        self._by_id.clear()
