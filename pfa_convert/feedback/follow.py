"""Following learned weights through a module's own forward, call by call.

While the user's forward runs, a TorchFunctionMode sees every function of PyTorch's that it calls. It notes
which tensors are computed from weights alone (`W.t()`, `W[:4]`, `W - W.mean()`, a table's rows), and which
are constants. A product of such a tensor with anything else applies the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pfa_convert.feedback.attention import attention_of_plain_calls
from pfa_convert.feedback.calls import at, replaced, tensors_of
from pfa_convert.feedback.functions import (
    changes_in_place,
    is_lookup,
    keeps_mixtures,
    makes_new_values,
    multiplies,
    plain_name,
    takes_values_of_first,
)
from pfa_convert.feedback.known import KnownTensors
from pfa_convert.feedback.learned import Learned, Operand
from pfa_convert.feedback.lookup import looked_up_in, takes_matrices
from pfa_convert.feedback.own_functions import OwnFunctions
from pfa_convert.feedback.products import Product, product_of
from pfa_convert.feedback.repeat import repeatable
from pfa_convert.feedback.written_out import dims_of, is_sum, written_out


class _Call(NamedTuple):
    """A call of a function that multiplies operands."""

    function: Any
    product: Product
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class FollowWeights(KnownTensors, TorchFunctionMode):
    """Sees a forward's calls; a subclass says what becomes of one that applies a weight.

    Args:
        weights: the Learned of each Parameter to follow.
        constants: tensors that are neither weights nor activations, such as buffers.
    """

    def __init__(self, weights: Sequence[Learned], constants: Sequence[Tensor]) -> None:
        super().__init__(weights, constants)
        self._functions = OwnFunctions()

    def forget(self) -> None:
        """Let go of all tensors, also of those that autograd functions of the user's own were given."""
        super().forget()
        self._functions.forget()

    def applied(
        self,
        function: Any,
        product: Product,
        weights: list[Operand],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return the result of a call that multiplies these operands, learned, with activations."""
        raise NotImplementedError

    def with_taps(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], learned: list[Learned]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a call's arguments, with whatever is to stand for weights that others are computed from."""
        return args, kwargs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            self._functions.notice()
            return self.without_gradients(func, args, kwargs)
        if func is functional.multi_head_attention_forward:
            with self:
                return attention_of_plain_calls(*args, **kwargs)
        tensors = list(tensors_of(args[:1], {}) if takes_values_of_first(func) else tensors_of(args, kwargs))
        learned = [found for found in map(self.find, tensors) if found is not None]
        if not learned:
            result = func(*args, **kwargs)
            if all(self.is_constant(tensor) for tensor in tensors):
                if isinstance(result, Tensor):
                    self.remember_constant(result)
            elif not torch.compiler.is_compiling() and changes_in_place(func):
                self.forget_constant(args[0])  # a module for which this matters is not compiled
            return result
        product = product_of(func)
        if product is None:
            call = self._written_out(func, args, kwargs)
        else:
            call = _Call(func, product, args, kwargs)
        if call is not None:
            weights, multiplied = self._multiplied(call.product, call.args, call.kwargs)
            if weights and multiplied:
                result = self.applied(call.function, call.product, weights, call.args, call.kwargs)
                self.note(func, args, kwargs, result, learned, mixed=True)
                return result
        return self._computed(func, product, args, kwargs, tensors, learned)

    def _written_out(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        """Return the product whose terms a call sums, multiplied before; None if it does no such thing."""
        terms = self.find(args[0]) if args and is_sum(func) else None
        if terms is None or terms.multiplied is None:
            return None
        whole = terms.multiplied.summed(func, args, kwargs)
        product = written_out(dims_of(args, kwargs))
        return None if whole is None else _Call(whole, product, terms.multiplied.factors, {})

    def without_gradients(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of a call for which no gradient is recorded."""
        return func(*args, **kwargs)

    def find(self, tensor: Any) -> Learned | None:
        """Return what is known of a tensor that is learned."""
        found = super().find(tensor)
        return self._made_by_own_function(tensor) if found is None else found

    def _made_by_own_function(self, tensor: Any) -> Learned | None:
        """Note and return what an autograd function of the user's own has computed from weights."""
        call = self._functions.call_that_made(tensor)
        if call is None:
            return None
        given = [(operand, self.find(operand)) for operand in tensors_of(call.args, {})]
        learned = [found for _, found in given if found is not None and not found.mixed]
        others = [operand for operand, found in given if found not in learned]
        if not learned or not all(map(self.is_constant, others)):
            return None
        if self.with_taps(call.args, {}, learned)[0] is not call.args:
            name = type(tensor.grad_fn).__name__.removesuffix("Backward")
            raise RuntimeError(
                f"{name} keeps the gradient of a weight from its plastic feedback state: "
                "give the layer the strategy 'collapsed'"
            )
        self.note(call.again, call.args, {}, tensor, learned, mixed=False)
        return super().find(tensor)

    def used_otherwise(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], learned: Sequence[Learned]
    ) -> None:
        """Be told that a call, which is no product, combines weights with activations."""

    def _multiplied(
        self, product: Product, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Operand], bool]:
        """Return the weights among a product's operands, and whether anything else is there."""
        weights, others = [], False
        for index, slot in enumerate(product.slots(args, kwargs)):
            tensor = at(slot, args, kwargs)
            learned = self.find(tensor)
            if learned is not None and (not learned.mixed or index == product.weight):
                weights.append(Operand(index, learned))
            elif isinstance(tensor, Tensor) and (learned is not None or not self.is_constant(tensor)):
                others = True
        return weights, others

    def _computed(
        self,
        func: Any,
        product: Product | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        learned: list[Learned],
    ) -> Any:
        """Return the result of a call that applies no weight, and note what it computed from weights."""
        args, kwargs = self.with_taps(args, kwargs, learned)
        again, in_place = repeatable(func, args, kwargs), changes_in_place(func)
        if in_place:
            self.settle()
        result = func(*args, **kwargs)
        if in_place or self._is_learned_first(result, args):
            self.change(again, args, kwargs)
            return result
        if not isinstance(result, Tensor | list | tuple):
            return result
        if makes_new_values(func):
            self.remember_constant(result)
            return result
        unknown = any(self.find(t) is None and not self.is_constant(t) for t in tensors)
        mixed = any(one.mixed for one in learned)
        if unknown or mixed:
            self.used_otherwise(func, args, kwargs, [one for one in learned if not one.mixed])
        if unknown and product is None:
            # Rows that activations look up are a mixture, the matrices of a stack are weights. Elementwise, a
            # weight stays one, `W * mask`; spread over a batch, `W * style`, it is a mixture.
            if is_lookup(func):
                mixed = mixed or not self._takes_matrices(func, args, kwargs)
            elif multiplies(func):
                mixed = mixed or not _same_shape(result, learned)
            elif mixed or not _same_shape(result, learned):
                return result
            else:
                mixed = True
        elif mixed and not keeps_mixtures(func):
            return result
        self.note(func, args, kwargs, result, learned, mixed, again)
        return result

    def _takes_matrices(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Say whether a call looks up whole matrices in a stack that is computed from weights alone."""
        stack = self.find(looked_up_in(args, kwargs))
        return stack is not None and takes_matrices(plain_name(func), args[1:], kwargs, stack.tensor.dim())

    def change(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Follow a change in place of a tensor that is computed from weights by one of its feedback weight.

        A change of a Parameter itself is the user's own business. A constant that weights are written into
        is taken for an activation from then on; a weight that activations are written into for a mixture.
        """
        changed, *others = args
        learned = self.find(changed)
        if learned is None:
            self.forget_constant(changed)
            return
        if self.is_of_parameter(changed):
            return
        if any(map(self._is_activation, tensors_of(others, kwargs))):
            self.mix(changed)
        with torch.no_grad():
            rest, keywords = replaced(others, kwargs, self.feedback_of)
            func(self.twin_of(learned), *rest, **keywords)

    def _is_learned_first(self, result: Any, args: tuple[Any, ...]) -> bool:
        """Say whether a call returned the weight that it was given, as `relu(W, inplace=True)` does."""
        return len(args) > 0 and result is args[0] and self.find(result) is not None

    def _is_activation(self, tensor: Tensor) -> bool:
        """Say whether activations took part in a tensor."""
        found = self.find(tensor)
        return not self.is_constant(tensor) if found is None else found.mixed


def _same_shape(result: Any, learned: Sequence[Learned]) -> bool:
    return isinstance(result, Tensor) and any(one.tensor.shape == result.shape for one in learned)
