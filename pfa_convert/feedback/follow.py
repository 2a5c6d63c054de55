"""Following learned weights through a module's own forward, call by call.

While the user's forward runs, a TorchFunctionMode sees every function of PyTorch's that it calls. It notes
which tensors are computed from weights alone (`W.t()`, `W[:4]`, `W - W.mean()`, a table's rows), and which
are constants. A product of such a tensor with anything else applies the weight.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pfa_convert.feedback.attention import attention_of_plain_calls
from pfa_convert.feedback.products import Product, Slot, at, product_of

Replace = Callable[[Any], Any]


class Learned:
    """A tensor that is a Parameter, or computed from Parameters.

    `mixed` says that activations took part (a mixture of expert weights): then it is a weight only for a
    function that has it in a weight's place. `axes` are a Parameter's dimensions in the tensor's order,
    None where that cannot be said. `direct` is the feedback state of a weight whose error does not come
    along `F` of its shape, but from the model's output.
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
        self._recompute = recompute
        self._feedback: Tensor | None = None

    def feedback(self) -> Tensor:
        """Return the same function of the feedback weights, computed once."""
        if self._feedback is None:
            assert self._recompute is not None
            if torch.is_grad_enabled():
                with torch.no_grad():
                    computed = self._recompute()
            else:
                computed = self._recompute()
            self._feedback = computed.detach() if isinstance(computed, Tensor) else computed
        return self._feedback


class FollowWeights(TorchFunctionMode):
    """Sees a forward's calls; a subclass says what becomes of one that applies a weight.

    Args:
        weights: the Learned of each Parameter to follow.
        constants: tensors that are neither weights nor activations, such as buffers.
    """

    def __init__(self, weights: Sequence[Learned], constants: Sequence[Tensor]) -> None:
        super().__init__()
        self._learned = _Noted(weights)
        self._constants = _Noted(Learned(constant) for constant in constants)

    def forget(self) -> None:
        """Let go of all tensors: they refer back to what notes them, and would be kept until a collection."""
        self._learned.clear()
        self._constants.clear()

    def applied(
        self,
        function: Any,
        product: Product,
        slots: list[Slot],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return the result of a call that multiplies what stands in `slots`, learned, with activations."""
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
            return self.without_gradients(func, args, kwargs)
        if func is functional.multi_head_attention_forward:
            with self:
                return attention_of_plain_calls(*args, **kwargs)
        tensors = list(tensors_of(args, kwargs))
        learned = [found for found in map(self.find, tensors) if found is not None]
        if not learned:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and all(self.is_constant(tensor) for tensor in tensors):
                self._constants.add(Learned(result))
            return result
        product = product_of(func)
        if product is not None:
            slots, multiplied = self._multiplied(product, args, kwargs)
            if slots and multiplied:
                result = self.applied(func, product, slots, args, kwargs)
                self._note(func, args, kwargs, result, learned, mixed=True)
                return result
        return self._computed(func, product, args, kwargs, tensors, learned)

    def without_gradients(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of a call for which no gradient is recorded."""
        return func(*args, **kwargs)

    def find(self, tensor: Any) -> Learned | None:
        """Return what is known of a tensor that is learned."""
        return self._learned.find(tensor)

    def remember(self, learned: Learned) -> None:
        """Note a tensor that is computed from weights."""
        self._learned.add(learned)

    def is_constant(self, tensor: Tensor) -> bool:
        """Say whether a tensor is neither learned by feedback nor an activation."""
        return isinstance(tensor, nn.Parameter) or self._constants.find(tensor) is not None

    def used_otherwise(self, function: Any, learned: Sequence[Learned]) -> None:
        """Be told that a call, which is no product, combines weights with activations."""

    def describe(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], learned: list[Learned], made: Learned
    ) -> None:
        """Be told what a tensor was made of, to note in `made` what is of interest."""

    def _multiplied(
        self, product: Product, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Slot], bool]:
        """Return the slots of the weights among a product's operands, and whether anything else is there."""
        slots, others = [], False
        for index, slot in enumerate(product.slots(args, kwargs)):
            operand = at(slot, args, kwargs)
            learned = self.find(operand)
            if learned is not None and (not learned.mixed or index == product.weight):
                slots.append(slot)
            elif isinstance(operand, Tensor) and (learned is not None or not self.is_constant(operand)):
                others = True
        return slots, others

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
        result = func(*args, **kwargs)
        if func in IN_PLACE:
            self.change(func, args, kwargs)
            return result
        if not isinstance(result, Tensor | list | tuple):
            return result
        if makes_new_values(func):
            self._constants.add(Learned(result))
            return result
        unknown = any(self.find(t) is None and not self.is_constant(t) for t in tensors)
        mixed = any(one.mixed for one in learned)
        if unknown or mixed:
            self.used_otherwise(func, [one for one in learned if not one.mixed])
        if unknown and product is None:
            # Elementwise, a weight of the same shape stays one: `W * mask`. Spread over a batch, `W * style`,
            # it is a mixture, as is what activations look up: an expert's weight, or mere rows of a table.
            same = not mixed and _same_shape(result, learned)
            if not same and not is_lookup(func) and plain_name(func) not in _MULTIPLYING:
                return result
            mixed = not same or is_lookup(func)
        elif mixed and not keeps_mixtures(func):
            return result
        self._note(func, args, kwargs, result, learned, mixed)
        return result

    def change(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Follow a change in place of a tensor that is computed from weights, or becomes so by it.

        The same is done to its feedback weight. A change of a Parameter itself is the user's own business.
        """

        def feedback_of(operand: Any) -> Any:
            found = self.find(operand)
            return operand if found is None else found.feedback()

        changed, *others = args
        learned = self.find(changed)
        if learned is None and not self.is_constant(changed):
            return
        if learned is not None and self.is_of_parameter(changed):
            return
        with torch.no_grad():
            twin = changed.clone() if learned is None else learned.feedback()
            rest, keywords = replaced(others, kwargs, feedback_of)
            if learned is None:
                self.remember(Learned(changed, recompute=lambda: twin))
            func(twin, *rest, **keywords)

    def is_of_parameter(self, tensor: Tensor) -> bool:
        """Say whether a tensor shares its memory with a Parameter that is followed."""
        if torch.compiler.is_compiling():
            return False
        memory = tensor.untyped_storage().data_ptr()
        return any(
            isinstance(one.tensor, nn.Parameter) and one.tensor.untyped_storage().data_ptr() == memory
            for one in self._learned
        )

    def _note(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        learned: list[Learned],
        mixed: bool,
    ) -> None:
        """Note that a result is computed from weights, with the way to compute it from feedback weights."""

        def feedback_of(operand: Any) -> Any:
            found = self.find(operand)
            return operand if found is None else found.feedback()

        def recompute() -> Any:
            twin_args, twin_kwargs = replaced(args, kwargs, feedback_of)
            if plain_name(func) in _DROPPING:  # the same elements are dropped, without new random numbers
                dropped = (result / args[0]).nan_to_num(0.0, 0.0, 0.0)
                return twin_args[0] * dropped
            return func(*twin_args, **twin_kwargs)

        several = isinstance(result, list | tuple)
        shared = Learned(None, recompute=recompute) if several else None
        for index, tensor in enumerate(result if several else (result,)):
            if isinstance(tensor, Tensor) and self.find(tensor) is None:
                part = recompute if shared is None else _part(shared, index)
                made = Learned(tensor, mixed=mixed, recompute=part, direct=learned[0].direct)
                self.describe(func, args, kwargs, learned, made)
                self.remember(made)


class _Noted:
    """Tensors that something is known of, found by identity."""

    def __init__(self, noted: Iterable[Learned]) -> None:
        self._noted: list[Learned] = []
        self._by_id: dict[int, Learned] = {}
        for one in noted:
            self.add(one)

    def add(self, one: Learned) -> None:
        # A compiler knows no number of a tensor that it has not seen yet.
        if torch.compiler.is_compiling():
            self._noted.append(one)
        else:
            self._by_id[id(one.tensor)] = one

    def find(self, tensor: Any) -> Learned | None:
        if not torch.compiler.is_compiling():
            return self._by_id.get(id(tensor))
        for one in self._noted:
            if one.tensor is tensor:
                return one
        return None

    def __iter__(self) -> Iterator[Learned]:
        return iter([*self._noted, *self._by_id.values()])

    def clear(self) -> None:
        self._noted.clear()
        self._by_id.clear()


def tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a call, and those in its lists."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            for entry in value:
                if isinstance(entry, Tensor):
                    yield entry


def replaced(
    args: Sequence[Any], kwargs: dict[str, Any], replace: Replace
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments with each tensor, also in lists, replaced."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return replace(value)
        if isinstance(value, list | tuple) and any(isinstance(entry, Tensor) for entry in value):
            entries = [replace(entry) if isinstance(entry, Tensor) else entry for entry in value]
            return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
        return value

    return tuple(of(value) for value in args), {key: of(value) for key, value in kwargs.items()}


def _part(shared: Learned, index: int) -> Callable[[], Any]:
    return lambda: shared.feedback()[index]


def _same_shape(result: Any, learned: Sequence[Learned]) -> bool:
    return isinstance(result, Tensor) and any(one.tensor.shape == result.shape for one in learned)


def is_lookup(func: Any) -> bool:
    """Say whether a function takes rows of a table."""
    return plain_name(func) in _LOOKUPS


def makes_new_values(func: Any) -> bool:
    """Say whether a function takes no more than the shape from a tensor."""
    return plain_name(func) in _NEW_VALUES


def is_elementwise(func: Any) -> bool:
    """Say whether a function computes each element from those at the same place."""
    return plain_name(func) in _ELEMENTWISE


def keeps_mixtures(func: Any) -> bool:
    """Say whether what a function makes of a mixture of weights is still one."""
    return plain_name(func) in _SHAPING or is_elementwise(func)


def those_that_count(func: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Return which of the tensors that make up a weight are weights themselves, by dimensions and elements.

    Where they are multiplied as matrices, added or put side by side, all of two dimensions or more are. In
    anything else, `g * V / |V|`, those smaller than the largest are its scale.
    """
    every = range(len(sizes))
    if product_of(func) is not None or plain_name(func) in _ADDING:
        kept = [index for index in every if sizes[index][0] > 1]
    else:
        kept = [index for index in every if sizes[index][1] == max(elements for _, elements in sizes)]
    return kept or list(every)


def axes_after(
    name: str,
    arguments: Sequence[Any],
    kwargs: dict[str, Any],
    axes: tuple[int, ...] | None,
    dimensions: int | None = None,
) -> tuple[int, ...] | None:
    """Return the order of dimensions after a function, from that before; None where it cannot be said."""
    if axes is None:
        return None
    size = len(axes)
    if name in ("t", "T", "mT", "H", "mH", "adjoint") and size == 2:
        return axes[::-1]
    if name in ("mT", "mH", "adjoint"):
        return (*axes[:-2], axes[-1], axes[-2])
    if name in ("transpose", "swapaxes", "swapdims"):
        first, second = [*arguments, *kwargs.values()][:2]
        if not isinstance(first, int) or not isinstance(second, int):
            return None
        swapped = list(axes)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        return tuple(swapped)
    if name == "permute":
        order = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else arguments
        known = len(order) == size and all(isinstance(d, int) for d in order)
        return tuple(axes[d] for d in order) if known else None
    if name in _RESHAPING or (dimensions is not None and dimensions != size):
        return None
    return axes


def plain_name(func: Any) -> str:
    """Return the name of a function of PyTorch's, or of a tensor's property, without underscores."""
    return _NAMES.get(func, "")


_RESHAPING = frozenset(
    [
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "expand",
        "unsqueeze",
        "squeeze",
        "repeat",
        "reshape_as",
        "view_as",
        "movedim",
        "moveaxis",
        "stack",
    ]
)
_SHAPING = _RESHAPING | frozenset(
    [
        "t",
        "T",
        "mT",
        "H",
        "mH",
        "adjoint",
        "transpose",
        "swapaxes",
        "swapdims",
        "permute",
        "contiguous",
        "getitem",
        "split",
        "chunk",
        "unbind",
        "to",
        "type_as",
        "float",
        "half",
        "bfloat16",
        "double",
        "narrow",
        "select",
        "clone",
        "cat",
    ]
)
_ELEMENTWISE = frozenset(
    [
        "mul",
        "rmul",
        "imul",
        "div",
        "truediv",
        "itruediv",
        "add",
        "radd",
        "iadd",
        "sub",
        "rsub",
        "isub",
        "neg",
        "where",
        "masked_fill",
        "dropout",
    ]
)
_MULTIPLYING = frozenset(["mul", "rmul", "imul", "div", "truediv", "itruediv"])
_DROPPING = frozenset(["dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"])
_NEW_VALUES = frozenset(
    ["zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like"]
    + ["new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"]
)
_ADDING = frozenset(["add", "radd", "iadd", "sub", "rsub", "isub", "cat", "stack", "where"])
_LOOKUPS = frozenset(["getitem", "index_select", "embedding", "gather", "take", "take_along_dim", "index"])


def _names() -> dict[Any, str]:
    """Return the names of the functions that are told apart; a compiler knows functions, not names."""
    names: dict[Any, str] = {}
    for name in _SHAPING | _ELEMENTWISE | _ADDING | _DROPPING | _NEW_VALUES | _LOOKUPS | _PROPERTIES:
        for home in (torch, functional, operator, Tensor):
            for spelled in (name, f"__{name}__", f"{name}_"):
                found = getattr(home, spelled, None)
                if not callable(found):
                    found = getattr(found, "__get__", None)
                if found is not None:
                    names[found] = name
    return names


_PROPERTIES = frozenset(
    ["T", "mT", "H", "mH", "data", "real", "shape", "dtype", "device", "ndim", "requires_grad"]
)
_NAMES = _names()

_OF_AUTOGRAD = frozenset(["requires_grad_", "retain_grad_", "share_memory_", "detach_", "resize_", "set_"])
IN_PLACE = frozenset(
    getattr(Tensor, name)
    for name in dir(Tensor)
    if (name.endswith("_") and not name.endswith("__") and name not in _OF_AUTOGRAD)
    or name in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__")
)
"""The methods of a tensor that change it."""
