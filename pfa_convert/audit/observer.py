"""Watching one run of a model at PyTorch's dispatcher: which operations use which Parameters, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pfa_convert.audit import operations as ops
from pfa_convert.audit.data import ACTIVATION, NOTHING, Data, Kind, Origins, joined, memory_of
from pfa_convert.audit.place import INPUT, PLAIN, TWIN, WITHOUT_GRADIENT, Place, Stack

AMONG_WEIGHTS = "among weights"
"""The way of a product that computes a weight from weights or from constants, as in `W + B @ A`."""


@dataclass(frozen=True)
class Use:
    """An operation that combines what is computed from `parameters` with what is not.

    Args:
        parameters: names of the Parameters that the operand was computed from.
        operation: the operation of PyTorch's; `mul, sum` for a product written as these two.
        operand: the name of the operand in the operation's schema.
        linear: whether the operation is linear in the operand and sums over its elements.
        way: for a linear one `feedback`, `plain`, `no gradient` or `among weights`; else what it is used for.
        module: the name of the module whose code runs the operation.
        line: file and line of that code.
    """

    parameters: tuple[str, ...]
    operation: str
    operand: str
    linear: bool
    way: str
    module: str
    line: str


@dataclass(frozen=True)
class _Operand:
    """An operation's operand: its name there, the tensor, and what is known of it."""

    name: str
    tensor: Tensor
    data: Data


@dataclass(frozen=True)
class _Scaled:
    """A product element by element, before a sum makes a linear map of it: the dimensions both have."""

    shape: tuple[int, ...]
    shared: frozenset[int]
    parameters: frozenset[str]


class Observer(TorchDispatchMode):
    """While active, notes the uses of a model's Parameters.

    Args:
        model: the model whose forward will run.
        parameters: the Parameters to follow, by name.
        constants: tensors that are neither learned nor activations.
        kept: tensors that the run must not change; `put_back` undoes what it did to them.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, Tensor],
        constants: Iterable[Tensor],
        kept: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        self.uses: Counter[Use] = Counter()
        self.read: set[str] = set()
        self._names = {module: name for name, module in model.named_modules()}
        self._origins = Origins(parameters, constants)
        self._scaled: dict[tuple[str, int], _Scaled] = {}
        self._kept = {memory_of(tensor): tensor for tensor in kept}
        self._before: dict[tuple[str, int], Tensor] = {}

    def put_back(self) -> None:
        """Undo what the run wrote into the tensors that it must not change."""
        with unset_fake_temporarily():
            for memory, before in self._before.items():
                _flat(self._kept[memory]).copy_(before)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        arguments = _named_arguments(func, args, kwargs)
        name = ops.name_of(func)
        operands = [
            _Operand(key, leaf, self._origins.of(leaf))
            for key, value in arguments.items()
            for leaf in (tree_leaves(value) if isinstance(value, list | tuple | dict) else (value,))
            if isinstance(leaf, Tensor)
        ]
        written = [operand for operand in operands if _writes(func, name, operand.name)]
        for operand in written:
            self._preserve(operand.tensor)
        self.read |= NOTHING.union(*(operand.data.parameters for operand in operands))
        learned = any(operand.data.parameters for operand in operands)
        data = self._judge(func, name, arguments, operands) if learned else self._plain(func, name, operands)
        result = func(*args, **kwargs)
        self._remember(name, operands, written, result, data)
        return result

    def _plain(self, func: Any, name: str, operands: Sequence[_Operand]) -> Data:
        """Return what is known of a result that no Parameter went into."""
        values = [] if name in ops.METADATA_ONLY else [operand.data for operand in operands]
        random = ops.RANDOM in getattr(func, "tags", ())
        return Data(max(joined(values).kind, Kind.NOISE if random else Kind.CONSTANT))

    def _judge(self, func: Any, name: str, arguments: dict[str, Any], operands: Sequence[_Operand]) -> Data:
        """Note how an operation uses Parameters; return what is known of its result."""
        if name in ops.METADATA_ONLY:
            return self._plain(func, name, operands)
        product = ops.product_operands(name, arguments)
        if product or not ops.is_known(func):
            factors = [operand for operand in operands if operand.name in product or not product]
            others = [operand for operand in operands if operand not in factors]
            return self._judge_product(name, factors, others, recorded=not product)
        if name in ("sum", "mean"):
            self._judge_sum(operands[0], arguments)
        data = joined(operand.data for operand in operands)
        if data.kind is not Kind.ACTIVATION:
            return data
        stack: Stack | None = None
        for operand in operands:
            if operand.data.kind is Kind.LEARNED:
                stack = stack or Stack()
                self._note(operand, name, False, ops.use_of(name), stack.place(self._names))
        return _mixture(name, operands)

    def _judge_product(
        self, name: str, factors: Sequence[_Operand], others: Sequence[_Operand], recorded: bool
    ) -> Data:
        """Note the learned factors of a product, and what else it takes, as its bias.

        `recorded` says that it may record gradients though PyTorch does not.
        """
        stack = Stack()
        place = stack.place(self._names)
        weights, applied = _weights_among(factors)
        for factor in weights:
            way = stack.way(factor.tensor, factor.data, self._origins)
            if way == INPUT:
                self._note(factor, name, False, "input of a layer", place)
            elif way != TWIN:
                way = PLAIN if recorded and way == WITHOUT_GRADIENT else way
                among = way in (PLAIN, WITHOUT_GRADIENT) and not applied
                self._note(factor, name, True, AMONG_WEIGHTS if among else way, place)
        for other in others:
            if applied and other.data.kind is Kind.LEARNED:
                self._note(other, name, False, "bias", place)
        if applied or stack.in_pass():
            return ACTIVATION
        mixed = any(factor.data.kind is Kind.ACTIVATION for factor in factors)
        parameters = NOTHING.union(*(one.data.parameters for one in (*factors, *others)))
        return (
            Data(Kind.ACTIVATION, parameters, True) if mixed else joined(o.data for o in (*factors, *others))
        )

    def _judge_sum(self, operand: _Operand, arguments: dict[str, Any]) -> None:
        """Note a product that is written as a multiplication and a sum over a dimension of both."""
        scaled = self._scaled.get(memory_of(operand.tensor))
        if scaled is None or scaled.shape != tuple(operand.tensor.shape):
            return
        dims = arguments.get("dim")
        dims = (
            range(len(scaled.shape))
            if dims is None or dims == []
            else [dims]
            if isinstance(dims, int)
            else dims
        )
        if scaled.shared & {dim % len(scaled.shape) for dim in dims}:
            stack = Stack()
            way = stack.way(operand.tensor, operand.data, self._origins)
            product = _Operand("other", operand.tensor, Data(Kind.LEARNED, scaled.parameters))
            if way in (PLAIN, WITHOUT_GRADIENT):
                self._note(product, "mul, sum", True, way, stack.place(self._names))

    def _note(self, operand: _Operand, operation: str, linear: bool, way: str, place: Place) -> None:
        parameters = tuple(sorted(operand.data.parameters))
        self.uses[Use(parameters, operation, operand.name, linear, way, place.module, place.line)] += 1

    def _remember(
        self,
        name: str,
        operands: Sequence[_Operand],
        written: Sequence[_Operand],
        result: Any,
        data: Data,
    ) -> None:
        shared = {memory_of(operand.tensor) for operand in operands}
        for operand in written:
            self._origins.learn(operand.tensor, _after_writing(name, operand, operands, data))
        for leaf in tree_leaves(result) if isinstance(result, list | tuple) else (result,):
            if isinstance(leaf, Tensor) and memory_of(leaf) not in shared:
                self._origins.learn(leaf, data)
                self._scaled.pop(memory_of(leaf), None)
                if name in ops.MULTIPLICATIONS and data.parameters:
                    self._remember_scaled(operands, leaf)

    def _remember_scaled(self, operands: Sequence[_Operand], result: Tensor) -> None:
        learned = [one for one in operands if one.data.kind is Kind.LEARNED]
        others = [one for one in operands if one.data.kind is Kind.ACTIVATION]
        if learned and others:
            dimensions = [_large(one.tensor, result.dim()) for one in (learned[0], others[0])]
            shared = dimensions[0] & dimensions[1]
            self._scaled[memory_of(result)] = _Scaled(
                tuple(result.shape), frozenset(shared), learned[0].data.parameters
            )

    def _preserve(self, tensor: Tensor) -> None:
        memory = memory_of(tensor)
        kept = self._kept.get(memory)
        real = memory[0] not in ("object", "storage")
        if real and kept is not None and memory not in self._before:
            with unset_fake_temporarily():
                self._before[memory] = _flat(kept).clone()


def _named_arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by their names in the operation's schema."""
    schema = getattr(func, "_schema", None)
    names: Iterator[str] = iter([argument.name for argument in schema.arguments] if schema else ())
    return {next(names, f"argument {index}"): value for index, value in enumerate(args)} | kwargs


def _writes(func: Any, name: str, argument: str) -> bool:
    """Say whether an operation changes an argument; a batch norm changes its statistics untold."""
    if "batch_norm" in name and argument.startswith("running_"):
        return True
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    return any(
        one.name == argument and one.alias_info is not None and one.alias_info.is_write
        for one in schema.arguments
    )


def _after_writing(name: str, written: _Operand, operands: Sequence[_Operand], data: Data) -> Data:
    """Return what is known of memory that an operation wrote to; `data` are those of its result."""
    if name in ("copy", "fill", "zero") and _is_whole_storage(written.tensor):
        sources = [one.data for one in operands if one is not written]
        return sources[0] if len(sources) == 1 else joined(sources)
    return data


def _is_whole_storage(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _weights_among(factors: Sequence[_Operand]) -> tuple[list[_Operand], bool]:
    """Return the factors of a product that are weights, and whether they are applied to activations.

    A weight that activations have scaled is one in a convolution's weight's place, or if it still has its
    own shape; next to a weight that they have not, it may be a signal as well.
    """
    learned = [factor for factor in factors if factor.data.kind is Kind.LEARNED]
    scaled = [factor for factor in factors if _is_scaled_weight(factor)]
    if any(factor.data.kind in (Kind.ACTIVATION, Kind.NOISE) and factor not in scaled for factor in factors):
        return learned + scaled, True
    if learned:
        return learned + [factor for factor in scaled if factor.name == "weight"], bool(scaled)
    return scaled, len(scaled) > 1


def _is_scaled_weight(factor: _Operand) -> bool:
    mixed = factor.data.kind is Kind.ACTIVATION and bool(factor.data.parameters)
    return mixed and (factor.name == "weight" or factor.data.whole)


def _mixture(name: str, operands: Sequence[_Operand]) -> Data:
    """Return what is known of an operation's result that activations took part in.

    It keeps the Parameters of a weight that activations scale, until anything but such a thing happens.
    """
    if name not in ops.KEEPS_MIXTURES:
        return ACTIVATION
    largest = max(one.tensor.numel() for one in operands)
    mixed = [one for one in operands if one.data.parameters]
    whole = max(one.tensor.numel() for one in mixed) == largest and all(
        one.data.whole or one.data.kind is Kind.LEARNED for one in mixed
    )
    if name not in ops.MULTIPLICATIONS:
        if not whole or name not in ops.BEGINS_MIXTURES:
            mixed = [one for one in mixed if one.data.kind is Kind.ACTIVATION]
        whole = whole and name in ops.BEGINS_MIXTURES
    if not mixed:
        return ACTIVATION
    return Data(Kind.ACTIVATION, NOTHING.union(*(one.data.parameters for one in mixed)), whole)


def _large(tensor: Tensor, dimensions: int) -> set[int]:
    """Return a tensor's dimensions of more than one element, as numbered in a larger one that it fits to."""
    missing = dimensions - tensor.dim()
    return {missing + index for index, size in enumerate(tensor.shape) if size > 1}


def _flat(tensor: Tensor) -> Tensor:
    """Return all of a tensor's memory, of which it may be a part, as bytes."""
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return whole.set_(tensor.untyped_storage())
