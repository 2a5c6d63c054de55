"""Watching one run of a model at PyTorch's dispatcher: which operations use which Parameters, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pfa_convert.audit import operations as ops
from pfa_convert.audit.data import ACTIVATION, NOTHING, Data, Kind, Origins, joined, memory_of
from pfa_convert.audit.history import data_left
from pfa_convert.audit.operands import (
    Operand,
    after_writing,
    large_dimensions,
    mixture,
    named_arguments,
    weights_among,
    whole_memory,
    writes,
)
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
        left: tensors that an earlier run left, with a history.
        kept: tensors that the run must not change; `put_back` undoes what it did to them.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, Tensor],
        constants: Iterable[Tensor],
        left: Iterable[Tensor] = (),
        kept: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        self.uses: Counter[Use] = Counter()
        self.read: set[str] = set()
        self._names = {module: name for name, module in model.named_modules()}
        self._origins = Origins(parameters, constants)
        names_of = {parameter: name for name, parameter in parameters.items()}
        for tensor in left:
            self._origins.learn(tensor, data_left(tensor, names_of))
        self._scaled: dict[tuple[str, int], _Scaled] = {}
        self._kept = {memory_of(tensor): tensor for tensor in kept}
        self._before: dict[tuple[str, int], Tensor] = {}

    def put_back(self) -> None:
        """Undo what the run wrote into the tensors that it must not change."""
        with unset_fake_temporarily():
            for memory, before in self._before.items():
                whole_memory(self._kept[memory]).copy_(before)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        arguments = named_arguments(func, args, kwargs)
        name = ops.name_of(func)
        operands = [
            Operand(key, leaf, self._origins.of(leaf))
            for key, value in arguments.items()
            for leaf in (tree_leaves(value) if isinstance(value, list | tuple | dict) else (value,))
            if isinstance(leaf, Tensor)
        ]
        written = [operand for operand in operands if writes(func, name, operand.name)]
        for operand in written:
            self._preserve(operand.tensor)
        self.read |= NOTHING.union(*(operand.data.parameters for operand in operands))
        learned = any(operand.data.parameters for operand in operands)
        data = self._judge(func, name, arguments, operands) if learned else self._plain(func, name, operands)
        result = func(*args, **kwargs)
        self._remember(name, operands, written, result, data)
        return result

    def _plain(self, func: Any, name: str, operands: Sequence[Operand]) -> Data:
        """Return what is known of a result that no Parameter went into."""
        values = [] if name in ops.METADATA_ONLY else [operand.data for operand in operands]
        random = ops.RANDOM in getattr(func, "tags", ())
        return Data(max(joined(values).kind, Kind.NOISE if random else Kind.CONSTANT))

    def _judge(self, func: Any, name: str, arguments: dict[str, Any], operands: Sequence[Operand]) -> Data:
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
        return mixture(name, operands)

    def _judge_product(
        self, name: str, factors: Sequence[Operand], others: Sequence[Operand], recorded: bool
    ) -> Data:
        """Note the learned factors of a product, and what else it takes, as its bias.

        `recorded` says that it may record gradients though PyTorch does not.
        """
        stack = Stack()
        place = stack.place(self._names)
        weights, applied = weights_among(factors)
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

    def _judge_sum(self, operand: Operand, arguments: dict[str, Any]) -> None:
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
            product = Operand("other", operand.tensor, Data(Kind.LEARNED, scaled.parameters))
            if way != TWIN:
                self._note(product, "mul, sum", True, way, stack.place(self._names))

    def _note(self, operand: Operand, operation: str, linear: bool, way: str, place: Place) -> None:
        parameters = tuple(sorted(operand.data.parameters))
        self.uses[Use(parameters, operation, operand.name, linear, way, place.module, place.line)] += 1

    def _remember(
        self,
        name: str,
        operands: Sequence[Operand],
        written: Sequence[Operand],
        result: Any,
        data: Data,
    ) -> None:
        shared = {memory_of(operand.tensor) for operand in operands}
        for operand in written:
            self._origins.learn(operand.tensor, after_writing(name, operand, operands, data))
        for leaf in tree_leaves(result) if isinstance(result, list | tuple) else (result,):
            if isinstance(leaf, Tensor) and memory_of(leaf) not in shared:
                self._origins.learn(leaf, data)
                self._scaled.pop(memory_of(leaf), None)
                if name in ops.MULTIPLICATIONS and data.parameters:
                    self._remember_scaled(operands, leaf)

    def _remember_scaled(self, operands: Sequence[Operand], result: Tensor) -> None:
        learned = [one for one in operands if one.data.kind is Kind.LEARNED]
        others = [one for one in operands if one.data.kind is Kind.ACTIVATION]
        if learned and others:
            dimensions = [large_dimensions(one.tensor, result.dim()) for one in (learned[0], others[0])]
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
                self._before[memory] = whole_memory(kept).clone()
