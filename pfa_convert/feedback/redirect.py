"""A module's own forward, with the calls that apply a learned weight sent back through its feedback weight.

The user's forward runs as it was written, with its contexts, attributes, branches and random numbers. A
weight that it computes first (`W - W.mean()`) has its error sent through the same function of the feedback
weight, `F = g(F_raw)`, and a plastic feedback state follows the raw weight.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from pfa_convert.feedback.calls import replaced, tensors_of
from pfa_convert.feedback.checkpoints import checkpoint_frame
from pfa_convert.feedback.compiling import whole_or_not_at_all
from pfa_convert.feedback.follow import FollowWeights
from pfa_convert.feedback.functional import FEEDBACK_CALLS, apply_operation
from pfa_convert.feedback.functions import is_lookup
from pfa_convert.feedback.given import GivenFeedback
from pfa_convert.feedback.graft import graft
from pfa_convert.feedback.learned import Learned, Operand
from pfa_convert.feedback.operations import MatrixProduct
from pfa_convert.feedback.primitive import apply_feedback
from pfa_convert.feedback.products import Product, groups_of, is_scale, is_transposed
from pfa_convert.feedback.raw_weight import RawWeight, tap
from pfa_convert.feedback.weight import FeedbackWeight


@whole_or_not_at_all
def run_redirected(
    function: Callable[..., Any],
    weights: Sequence[tuple[nn.Parameter, FeedbackWeight]],
    constants: Sequence[Tensor] | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Return `function(*args, **kwargs)`; where it applies one of the weights, it does so with feedback.

    A layer has no `constants`: whatever it is given is a signal, learned queries too.
    """
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    redirect = Redirect(weights, constants)
    try:
        with redirect:
            return function(*args, **kwargs)
    finally:
        redirect.forget()


class Redirect(FollowWeights):
    """While active, PyTorch's calls that apply one of the weights use its feedback weight.

    Within another module's redirected forward it knows that one's weights too, which may have been handed
    to this module: what is computed from the weights of both has both their feedback.
    """

    def __init__(
        self, weights: Sequence[tuple[nn.Parameter, FeedbackWeight]], constants: Sequence[Tensor] | None
    ) -> None:
        super().__init__([RawWeight(weight, feedback) for weight, feedback in weights], constants or ())
        self._again = weights, constants
        self._of_layer = constants is None
        self._outside = checkpoint_frame()
        self._around = _active()

    def find(self, tensor: Any) -> Learned | None:
        """Return what is known of a tensor that is learned, by the forward around or here."""
        found = None if self._around is None or self._of_layer else self._around.find(tensor)
        return super().find(tensor) if found is None else found

    def is_constant(self, tensor: Tensor) -> bool:
        """Say whether a tensor is neither learned by feedback nor an activation, here or around."""
        if self._of_layer:
            return self.is_noted_constant(tensor)
        return super().is_constant(tensor) or (self._around is not None and self._around.is_constant(tensor))

    def change(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Follow a change in place, unless that was done around, where the same call is seen first."""
        if self._around is None or self._around.find(args[0]) is None:
            super().change(func, args, kwargs)

    def applied(
        self,
        function: Any,
        product: Product,
        weights: list[Operand],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return the call's result, whose error goes back through the feedback weights."""
        self._join_checkpoint()
        scales = [one.weight for one in weights if is_scale(product, one.number, args)]
        weights = [one for one in weights if one.weight not in scales]
        if not weights:
            args, kwargs = self.with_taps(args, kwargs, scales)
            return function(*args, **kwargs)
        index, learned = weights[0]
        if len(weights) == 1 and function in FEEDBACK_CALLS and index == product.weight:
            W, feedback = self._operand(learned, _fits(learned, product, args, kwargs))
            args, kwargs = replaced(args, kwargs, lambda t: W if t is learned.tensor else t)
            return FEEDBACK_CALLS[function](*args, feedback=feedback, **kwargs)
        if len(weights) == 1 and product.name in _MATRIX_PRODUCTS and not kwargs:
            if product.name == "mv" and learned.tensor.device.type == "cpu":
                with torch.autocast("cpu", enabled=False):  # which leaves this one product alone
                    return self._matrix_product(function, weights[0], args)
            return self._matrix_product(function, weights[0], args)
        return self._graft(function, weights, args, kwargs)

    def with_taps(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], learned: list[Learned]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a call's arguments with raw weights whose gradients reach their plastic states too."""
        if not any(isinstance(one, RawWeight) and one.state.pathway.plastic for one in learned):
            return args, kwargs

        def tapped(operand: Tensor) -> Tensor:
            found = self.find(operand)
            return operand if found is None else self._tapped(found)

        return replaced(args, kwargs, tapped)

    def _tapped(self, learned: Learned) -> Tensor:
        """Return a weight; a raw one's gradient reaches its plastic state too, once for all uses.

        A checkpoint has a tap of its own, which its second run makes again.
        """
        if not isinstance(learned, RawWeight) or not learned.state.pathway.plastic:
            return learned.tensor
        if self._around is not None and self._around.find(learned.tensor) is learned:
            return self._around._tapped(learned)
        frame = checkpoint_frame()
        if learned.tapped is None or learned.tapped_in is not frame:
            learned.tapped_in = frame
            learned.tapped = tap(learned.tensor, learned.state)
            self.remember(Learned(learned.tapped, recompute=learned.feedback))
        return learned.tapped

    def without_gradients(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a call's result; refuse one whose gradients are recorded later, out of this mode's sight.

        Raises:
            RuntimeError: for a weight that goes into anything but a lookup inside reentrant checkpointing.
        """
        result = func(*args, **kwargs)
        if isinstance(result, Tensor | list | tuple) and not is_lookup(func):
            weights = [tensor for tensor in tensors_of(args, kwargs) if self.find(tensor) is not None]
            if weights and inside_reentrant_checkpointing(weights):
                raise RuntimeError(
                    "reentrant checkpointing inside a forward that applies weights itself would lose their "
                    "feedback: call checkpoint with use_reentrant=False, or on a module of its own"
                )
        return result

    def _join_checkpoint(self) -> None:
        """Have a checkpoint within the forward, which runs again in the backward pass, redirect then too."""
        frame = checkpoint_frame()
        redirect: Redirect | None = self
        if frame is None or is_joined(frame):
            return
        while redirect is not None:
            if frame is not redirect._outside:
                frame.recompute_fn = partial(run_redirected, frame.recompute_fn, *redirect._again)
            redirect = redirect._around

    def _matrix_product(self, function: Any, operand: Operand, args: tuple[Any, ...]) -> Any:
        index, learned = operand
        bias, operands = (args[0], args[1:]) if len(args) == 3 else (None, args)
        if bias is not None and bias.dim() != 1:
            return self._graft(function, [operand], args, {})
        reverse = function is Tensor.__rmatmul__
        left = (index == 0) != reverse
        fits = isinstance(learned, RawWeight) and learned.state.pathway.layout.is_matrix(left)
        W, feedback = self._operand(learned, fits)
        operation = MatrixProduct(torch.matmul if reverse else function, left, tuple(W.shape[:-2]))
        return apply_operation(operation, feedback, operands[1 - index], W, bias)

    def _operand(self, learned: Learned, fits: bool) -> tuple[Tensor, FeedbackWeight | GivenFeedback]:
        """Return a weight as it is applied, and its feedback: its own state where that `fits` the product."""
        direct = learned.direct
        if direct is not None:
            return learned.tensor, direct
        if fits and isinstance(learned, RawWeight):
            return learned.tensor, learned.state
        return self._tapped(learned), GivenFeedback(learned.feedback())

    def _graft(
        self, function: Any, weights: list[Operand], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Return the result of any product, computed a second time for the error below."""

        def weight_of(tensor: Tensor) -> Learned | None:
            return next((learned for _, learned in weights if learned.tensor is tensor), None)

        def with_weight(tensor: Tensor) -> Tensor:
            learned = weight_of(tensor)
            if learned is not None:
                return self._tapped(learned)
            return tensor if isinstance(tensor, nn.Parameter) else tensor.detach()

        def with_feedback(tensor: Tensor) -> Tensor:
            learned = weight_of(tensor)
            if learned is not None and learned.direct is not None:
                name = getattr(function, "__name__", "this function")
                raise RuntimeError(f"direct feedback does not go through {name}: give the layer another rule")
            if learned is not None:
                return learned.feedback()
            return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor

        return graft(function, replaced(args, kwargs, with_weight), replaced(args, kwargs, with_feedback))


def _active() -> Redirect | None:
    """Return the innermost redirection that is active."""
    for mode in reversed(_get_current_function_mode_stack()):
        if isinstance(mode, Redirect):
            return mode
    return None


def _fits(learned: Learned, product: Product, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Say whether a call of `linear` or a convolution applies a Parameter as its state's layout has it.

    A layout may have other groups than the call, which can compute them. Then the error must not go through
    `G` and the weight one after the other, which is another formula for other groups.
    """
    if not isinstance(learned, RawWeight):
        return False
    layout = learned.state.pathway.layout
    transposed = is_transposed(product, args, kwargs)
    return layout.is_weight(transposed) and layout.groups == groups_of(product, args, kwargs)


_MATRIX_PRODUCTS = frozenset(["matmul", "mm", "bmm", "mv", "addmm"])


def is_joined(frame: Any) -> bool:
    """Say whether a checkpoint's second run is redirected already."""
    return isinstance(frame.recompute_fn, partial) and frame.recompute_fn.func is run_redirected


def inside_reentrant_checkpointing(weights: Sequence[Tensor] = ()) -> bool:
    """Say whether a frame of reentrant checkpointing lies between this call and the module's forward.

    What it runs now without gradients it runs again in the backward pass, when no mode is active. A layer
    inside it brings its own feedback along both times, and a module there that of the `weights` it applies.
    """
    if torch.compiler.is_compiling():
        return False
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is apply_feedback.__code__:
            return False
        if code is run_redirected.__code__:
            known = {id(weight) for weight, _ in frame.f_locals["weights"]}
            if known.issuperset(map(id, weights)):
                return False
        if code.co_name == "forward" and code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
