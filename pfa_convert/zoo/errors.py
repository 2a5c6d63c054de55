"""Comparing the error below each site with backpropagation's, as it goes back through what autograd recorded.

Nothing here looks at how the model was rewritten: the recorded graph is searched for the feedback operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pfa_convert.feedback.operations import Operation

FEEDBACK = "FeedbackPassBackward"


def operations(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """Yield every operation that the error of these outputs goes back through."""
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(stack)
    while stack:
        operation = stack.pop()
        yield operation
        fresh = {below for below, _ in operation.next_functions if below is not None} - seen
        seen |= fresh
        stack.extend(fresh)


def applied_with_feedback(outputs: Iterable[Tensor]) -> Iterator[tuple[Any, set[Tensor]]]:
    """Yield each operation that sends its error through a feedback weight, and the Parameters it applies."""
    for operation in operations(outputs):
        if operation.name() == FEEDBACK:
            yield operation, set(_leaves(operation.next_functions[1][0]))


def _leaves(operation: Any) -> set[Tensor]:
    """Return the leaf tensors, Parameters or inputs, that an operand was computed from.

    What comes out of an operation with feedback is an activation; its leaves are not followed.
    """
    stack, seen, leaves = [operation], {operation}, set()
    while stack:
        current = stack.pop()
        if current.name() == FEEDBACK:
            continue
        if hasattr(current, "variable"):
            leaves.add(current.variable)
        fresh = {below for below, _ in current.next_functions if below is not None} - seen
        seen |= fresh
        stack.extend(fresh)
    return leaves


class ErrorsBelow:
    """Notes, as the error goes back, below which of the weights it differs from backpropagation's.

    `applied` are the weights that the forward pass applied with feedback; `silent` those that no error
    reached.
    """

    def __init__(self, outputs: Iterable[Tensor], weights: set[Tensor]) -> None:
        self.applied: set[Tensor] = set()
        self.changed: set[Tensor] = set()
        self.silent: set[Tensor] = set()
        for operation, parameters in applied_with_feedback(outputs):
            applied = parameters & weights
            self.applied |= applied
            x, W, *_ = operation.saved_tensors
            operation.register_hook(self._compare(operation.operation, x, W, applied))

    def _compare(self, operation: Operation, x: Tensor, W: Tensor, applied: set[Tensor]) -> Any:
        def compare(below: tuple[Tensor | None, ...], above: tuple[Tensor, ...]) -> None:
            if not above[0].any():
                self.silent |= applied
                return
            if below[0] is None:  # nothing lies upstream
                self.changed |= applied
                return
            with torch.no_grad():
                plain = operation.gradients(above[0], x, W, (True, False, False))[0]
            if plain is None or not torch.equal(below[0], plain):
                self.changed |= applied

        return compare
