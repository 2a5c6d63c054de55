"""The tensors known while a forward runs: learned ones, what they are computed from, and constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.feedback.calls import replaced
from pfa_convert.feedback.functions import drops_elements
from pfa_convert.feedback.learned import Learned, Noted
from pfa_convert.feedback.written_out import multiplied


class KnownTensors:
    """Which tensors are Parameters or computed from them, and how the same is computed of feedback weights.

    Args:
        weights: the Learned of each Parameter to follow.
        constants: tensors that are neither weights nor activations, such as buffers.
    """

    def __init__(self, weights: Sequence[Learned], constants: Sequence[Tensor]) -> None:
        super().__init__()
        self._learned = Noted(weights)
        self._constants = Noted(Learned(constant) for constant in constants)

    def forget(self) -> None:
        """Let go of all tensors: they refer back to what notes them, and would be kept until a collection."""
        self._learned.clear()
        self._constants.clear()

    def find(self, tensor: Any) -> Learned | None:
        """Return what is known of a tensor that is learned."""
        return self._learned.find(tensor)

    def remember(self, learned: Learned) -> None:
        """Note a tensor that is computed from weights."""
        self._learned.add(learned)

    def remember_constant(self, tensor: Any) -> None:
        """Note a tensor that is neither a weight nor an activation."""
        self._constants.add(Learned(tensor))

    def forget_constant(self, tensor: Tensor) -> None:
        """Note that an activation was written into a tensor, and so into the one that it is a view of."""
        for written in (tensor, _base(tensor)):
            self._constants.remove(written)

    def is_constant(self, tensor: Tensor) -> bool:
        """Say whether a tensor is neither learned by feedback nor an activation."""
        return isinstance(tensor, nn.Parameter) or self.is_noted_constant(tensor)

    def is_noted_constant(self, tensor: Tensor) -> bool:
        """Say whether a tensor was given as a constant, or computed from constants."""
        return self._constants.find(tensor) is not None

    def is_of_parameter(self, tensor: Tensor) -> bool:
        """Say whether a tensor shares its memory with a Parameter that is followed."""
        return any(_share_memory(one.tensor, tensor) for one in self._parameters())

    def _parameters(self) -> list[Learned]:
        return [one for one in self._learned if isinstance(one.tensor, nn.Parameter)]

    def mix(self, tensor: Tensor) -> None:
        """Note that activations were put beside the weights in a tensor, and in all that share its memory."""
        base = _base(tensor)
        for one in self._learned:
            if isinstance(one.tensor, Tensor) and not isinstance(one.tensor, nn.Parameter):
                one.mixed = one.mixed or _base(one.tensor) is base

    def twin_of(self, learned: Learned) -> Tensor:
        """Return what stands for a tensor, to be changed in place alike; never a weight's `F` itself."""
        twin = learned.feedback()
        if any(_share_memory(one.feedback(), twin) for one in self._parameters() if one is not learned):
            twin = learned.replace_feedback(twin.clone())
        return twin

    def settle(self) -> None:
        """Compute what stands for each learned tensor, before one that others were computed from changes."""
        for one in self._learned:
            one.settle()

    def describe(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], learned: list[Learned], made: Learned
    ) -> None:
        """Be told what a tensor was made of, to note in `made` what is of interest."""

    def note(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        learned: list[Learned],
        mixed: bool,
        again: Callable[..., Any] | None = None,
    ) -> None:
        """Note that a result is computed from weights, with the way to compute it from feedback weights.

        `again` is what repeats the call, where that is not the function itself.
        """
        repeat = again or func

        def recompute() -> Any:
            twin_args, twin_kwargs = replaced(args, kwargs, self.feedback_of)
            if drops_elements(func) and repeat is func:
                # The elements that were dropped are told by the result; not those of a weight that is zero.
                return twin_args[0] * (result / args[0]).nan_to_num(1.0)
            return repeat(*twin_args, **twin_kwargs)

        if isinstance(result, Tensor):
            made_of = [(result, recompute)]
        else:
            shared = Learned(None, recompute=recompute)
            made_of = [(part, _part(shared, index)) for index, part in enumerate(result)]
        for tensor, of_feedback in made_of:
            if isinstance(tensor, Tensor) and self._learned.find(tensor) is None:
                made = Learned(tensor, mixed=mixed, recompute=of_feedback, direct=learned[0].direct)
                made.multiplied = multiplied(func, args, kwargs, tensor)
                self.describe(func, args, kwargs, learned, made)
                self.remember(made)

    def feedback_of(self, operand: Any) -> Any:
        """Return what stands for an operand where feedback weights are computed as the weights were."""
        found = self.find(operand)
        return operand if found is None else found.feedback()


def _part(shared: Learned, index: int) -> Callable[[], Any]:
    return lambda: shared.feedback()[index]


def _share_memory(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors have the same memory, which a compiler cannot be asked."""
    if torch.compiler.is_compiling():
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _base(tensor: Tensor) -> Tensor:
    """Return the tensor that this one is a view of, or itself."""
    return tensor if tensor._base is None else tensor._base
