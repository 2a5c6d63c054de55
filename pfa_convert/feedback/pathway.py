"""What a rule contributes to the backward pass: its feedback weight, as a pure function of W and state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pfa_convert.feedback.guards import no_view, prepared, refuse_second_derivative
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.operations import Gradients, Needs, Operation

Tensors = tuple[Tensor | None, ...]
"""A state without its names, as autograd takes it; None for a tensor that the rule does without."""

State = TypeVar("State", bound=tuple[Any, ...])


class NoState(NamedTuple):
    """The state of a rule that has none."""


@dataclass(frozen=True)
class Pathway(Generic[State]):
    """The way of the error through one weight; a rule subclasses it and says what `F` is.

    `state_type` is a NamedTuple of tensors; a field whose value is None stands for a tensor that this
    weight does without. `plastic` names the field that is a Parameter, if one is. `follows_weight` says
    whether `F` has the shape of `W`, goes from the layer's output to its input, and is computed like a
    weight that is computed.
    """

    layout: WeightLayout
    state_type: ClassVar[Any] = NoState
    plastic: ClassVar[str | None] = None
    follows_weight: ClassVar[bool] = True

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the state's tensors, in their order."""
        fields: tuple[str, ...] = self.state_type._fields
        return fields

    def state_of(self, tensors: Sequence[Any]) -> State:
        """Return the state with its names, given its tensors in the order of `names`."""
        state: State = self.state_type(*tensors)
        return state

    def tensors_of(self, state: State) -> Tensors:
        """Undo `state_of`."""
        return tuple(state)

    def feedback_weight(self, W: Tensor, state: State) -> Tensor:
        """Return `F`, of the shape of `W`."""
        raise NotImplementedError

    def transport(self, W: Tensor, state: State) -> Tensor | None:
        """Return `T(W)`, which a plastic `F` comes to as it forgets its start; None for any other."""
        return None

    def gram(self, state: State) -> Tensor | None:
        """Return `G = B B^T` of a product rule, its diagonal blocks `(blocks, n, n)`; None for any other."""
        return None

    def phase(self, W: Tensor, state: State) -> None:
        """Let the state learn between two steps, in place, where the rule has it do so."""

    def plastic_gradient(self, grad_W: Tensor, state: State) -> Tensor | None:
        """Return the gradient of the plastic tensor, given `dL/dW`; None where there is none."""
        return None

    def apply(self, operation: Operation, x: Tensor, W: Tensor, b: Tensor | None, state: Tensors) -> Tensor:
        """Return the operation's output, recorded such that the error goes back along this pathway."""
        output: Tensor = FeedbackPass.apply(operation, self, *prepared(x, W, b), *state)
        return output

    def backward(
        self,
        operation: Operation,
        delta: Tensor,
        x: Tensor,
        W: Tensor,
        state: State,
        needs: Needs,
        learns: bool,
    ) -> tuple[Gradients, Tensor | None]:
        """Return the gradients of `x`, `W` and `b`, those that `needs` wants, and of the plastic tensor."""
        F = self.feedback_weight(W, state).to(W.dtype) if needs[0] else W
        gradients = operation.gradients(delta, x, F, needs)
        learned = self.plastic_gradient(gradients[1], state) if learns and gradients[1] is not None else None
        return gradients, learned


class FeedbackPass(torch.autograd.Function):
    """Forward: the plain operation. Backward: `dL/dW`, `dL/db` as ever, `dL/dx` through `F`.

    The plastic tensor learns if the weight does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        operation: Operation,
        pathway: Pathway[Any],
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        *state: Tensor | None,
    ) -> Tensor:
        """Compute the output and keep what the plain layer keeps; `F` is made in the backward pass.

        A frozen weight's gradient needs no input, which the code after may change in place.
        """
        ctx.operation, ctx.pathway = operation, pathway
        kept = x if ctx.needs_input_grad[3] else operation.shape_of(x)
        ctx.save_for_backward(kept, W, *state)
        return no_view(operation(x, W, b))

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Any, ...]:
        """Send `delta = dL/dy` down."""
        refuse_second_derivative()
        pathway = ctx.pathway
        x, W, *tensors = ctx.saved_tensors
        _, _, needs_x, needs_W, needs_b, *needs_state = ctx.needs_input_grad
        gradients, learned = pathway.backward(
            ctx.operation,
            deltas[0],
            x,
            W,
            pathway.state_of(tensors),
            (needs_x, needs_W, needs_b),
            needs_W and any(needs_state),
        )
        return None, None, *gradients, *gradients_of_state(pathway, learned)


def gradients_of_state(pathway: Pathway[Any], learned: Tensor | None) -> Tensors:
    """Return the gradient of each of the state's tensors, given that of the plastic one."""
    return tuple(learned if name == pathway.plastic else None for name in pathway.names)
