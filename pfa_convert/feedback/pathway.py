"""What a rule contributes to the backward pass: its feedback weight, as a pure function of W and state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.operations import Needs, Operation
from pfa_convert.feedback.primitive import FeedbackPass, prepared

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Pathway:
    """The way of the error through one weight; a rule subclasses it and says what `F` is.

    `names` are the state tensors, in the order in which the methods take them; those in `plastic`
    are Parameters, the others buffers. `follows_weight` says whether `F` has the shape of `W`, goes from
    the layer's output to its input, and is computed like a weight that is computed.
    """

    layout: WeightLayout
    names: ClassVar[tuple[str, ...]] = ()
    plastic: ClassVar[frozenset[str]] = frozenset()
    follows_weight: ClassVar[bool] = True

    def feedback_weight(self, W: Tensor, *state: Tensor) -> Tensor:
        """Return `F`, of the shape of `W`."""
        raise NotImplementedError

    def state_gradients(self, grad_W: Tensor, *state: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of each state tensor, given `dL/dW`; None for what is not plastic."""
        return (None,) * len(state)

    def phase(self, W: Tensor, *state: Tensor) -> None:
        """Let the state learn between two steps, in place, where the rule has it do so."""

    def mixing(self, *state: Tensor) -> Tensor | None:
        """Return `G = B B^T` of a product rule, `(groups, N_out/g, N_out/g)`."""
        return None

    def collapse(self, W: Tensor, *state: Tensor) -> tuple[Pathway, State]:
        """Return the closed form of this plastic pathway under SGD, and its state for the present `W`."""
        raise NotImplementedError

    def apply(self, operation: Operation, x: Tensor, W: Tensor, b: Tensor | None, state: State) -> Tensor:
        """Return the operation's output, recorded such that the error goes back along this pathway."""
        output: Tensor = FeedbackPass.apply(operation, self, *prepared(x, W, b), *state)
        return output

    def backward(
        self, operation: Operation, delta: Tensor, x: Tensor, W: Tensor, state: State, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x`, `W`, `b` and the state; `needs` says which of them are wanted."""
        plastic = any(needs[3:])
        F = self.feedback_weight(W, *state).to(W.dtype) if needs[0] else W
        wanted: Needs = (needs[0], needs[1] or plastic, needs[2])
        grad_x, grad_W, grad_b = operation.gradients(delta, x, F, wanted)
        grad_state: tuple[Tensor | None, ...] = (None,) * len(state)
        if plastic and grad_W is not None:
            grad_state = self.state_gradients(grad_W, *state)
        return grad_x, grad_W, grad_b, *grad_state
