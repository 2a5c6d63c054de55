"""The error at a model's output, handed to every site directly instead of through the layers between.

Each site returns, beside its output, a signal: a tensor without content, of the shape of the model's
output. The signals are inputs of a tap at that output. So when the error `e = dL/dlogits` comes back
through the tap, autograd itself takes it to each site, as the gradient of the site's signal, before the
site's own turn. Two forward passes before one backward pass have signals of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pfa_convert.errors import UserError
from pfa_convert.feedback.guards import no_view, prepared, refuse_second_derivative
from pfa_convert.feedback.operations import Operation
from pfa_convert.feedback.pathway import Pathway, Tensors


class OutputErrors:
    """Collects the signals of one forward pass at a time, and taps the output with them."""

    def __init__(self) -> None:
        self.batch = 0
        self._signals: list[Tensor] | None = None

    def collect(self, signal: Tensor) -> None:
        """Add a site's signal; outside the model's own forward there is no output, and nothing is done."""
        if self._signals is not None:
            self._signals.append(signal)

    def tapped(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return `forward(*args, **kwargs)`, whose error goes to the sites too.

        Raises:
            UserError: unless the result is one tensor of logits `(batch, outputs)`.
        """
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.batch = len(tensors[0]) if tensors and tensors[0].dim() else 1
        signals: list[Tensor] = []
        self._signals = signals
        try:
            output = forward(*args, **kwargs)
        finally:
            self._signals = None
        if not signals:
            return output
        _refuse_other_outputs(output, signals[0])
        return OutputTap.apply(output, *signals)


def _refuse_other_outputs(output: Any, signal: Tensor) -> None:
    batch, outputs = signal.shape
    wanted = f"direct feedback needs a model that returns one tensor of logits ({batch}, {outputs})"
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise UserError(f"{wanted}; this one returns a {kind}: wrap it in a module that returns the logits")
    if output.shape != signal.shape:
        raise UserError(f"{wanted}; this one returns {tuple(output.shape)}: set the rule's option 'outputs'")


class OutputTap(torch.autograd.Function):
    """The identity on the model's output, which hands the error to each signal as well."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *signals: Tensor) -> Tensor:
        """Return the output."""
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Any, ...]:
        """Return `e` once for each input."""
        return tuple(errors[0] if needed else None for needed in ctx.needs_input_grad)


class DirectState(NamedTuple):
    """`F` has as many outputs as the model, whatever the layer has."""

    F: Tensor


@dataclass(frozen=True)
class DirectPathway(Pathway[DirectState]):
    """A feedback weight from the model's output to the layer's input: `(N_e, N_in)` or `(N_e, N_in, *k)`.

    A transposed convolution's is `(N_in, N_e, *k)`. The convolution's groups do not divide it.
    """

    state_type: ClassVar[Any] = DirectState
    follows_weight: ClassVar[bool] = False
    errors: OutputErrors = field(default_factory=OutputErrors, compare=False)

    def feedback_weight(self, W: Tensor, state: DirectState) -> Tensor:
        """Return `F`."""
        return state.F

    def sharing(self, errors: OutputErrors) -> DirectPathway:
        """Return the same pathway, fed by these errors."""
        return replace(self, errors=errors)

    def apply(self, operation: Operation, x: Tensor, W: Tensor, b: Tensor | None, state: Tensors) -> Tensor:
        """Return the operation's output and leave a signal."""
        x, W, b = prepared(x, W, b)
        F = self.state_of(state).F
        outputs = F.shape[1] if self.layout.transposed else F.shape[0]
        y, signal = DirectPass.apply(operation, x, W, b, F, (self.errors.batch, outputs))
        self.errors.collect(signal)
        return y


class DirectPass(torch.autograd.Function):
    """Forward: the plain operation. Backward: as ever, but for `dL/dx`, which is `F e`."""

    @staticmethod
    def forward(
        ctx: Any,
        operation: Operation,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        F: Tensor,
        shape: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Compute the output, and the signal of the shape of the error."""
        ctx.operation = operation
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else operation.shape_of(x), W, F)
        ctx.set_materialize_grads(False)
        return no_view(operation(x, W, b)), x.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Any, ...]:
        """Send `F e` down.

        Raises:
            RuntimeError: if the error at the output did not come.
        """
        refuse_second_derivative()
        delta, e = errors
        if delta is None:
            return (None,) * 6
        if e is None:
            raise RuntimeError(
                "a layer with direct feedback got no error from the model's output: the loss must depend on "
                "what model(...) returns, and checkpointing must be use_reentrant=False"
            )
        x, W, F = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:4]
        below = ctx.operation.broadcast(e, F.to(e.dtype), delta, x) if needs[0] else None
        _, grad_W, grad_b = ctx.operation.gradients(delta, x, W, (False, *needs[1:]))
        return None, below, grad_W, grad_b, None, None


def with_output_tap(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model's forward that taps its output."""

    def tapped_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.output_errors.tapped(forward, self, *args, **kwargs)

    return tapped_forward
