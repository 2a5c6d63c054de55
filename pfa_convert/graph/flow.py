"""What the graph of a forward says of each learned weight: applied by which product, or used for what else.

The graph is only read. A node is computed from weights alone, from constants alone, or an activation; the
same distinction that `feedback.follow` makes of tensors while a forward runs.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList

from pfa_convert.feedback.calls import at
from pfa_convert.feedback.functions import (
    axes_after,
    is_elementwise,
    is_lookup,
    keeps_mixtures,
    looks_up_matrices,
    makes_new_values,
    plain_name,
    those_that_count,
)
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.lookup import looked_up_in
from pfa_convert.feedback.parametrized import raw_weight
from pfa_convert.feedback.products import Product, is_scale, operand_layout, product_of
from pfa_convert.graph.arguments import applies_argument
from pfa_convert.graph.trace import is_plain_function
from pfa_convert.graph.uses import UNSUPPORTED, use_name


@dataclass(frozen=True)
class Applied:
    """A product applies the Parameter of this path, as it is or computed; `kind` names the function."""

    path: str
    kind: str
    layout: WeightLayout


@dataclass(frozen=True)
class Used:
    """Something else is done with the Parameter, as `use` says; perhaps `inside` an untraced function."""

    path: str
    use: str
    inside: Any = None

    @property
    def applies(self) -> bool:
        """Whether that is a linear map, of a kind that has no feedback."""
        return self.use in UNSUPPORTED


@dataclass(frozen=True)
class _Value:
    """What a node computes. `paths` are the Parameters it comes from; none are a constant's."""

    paths: frozenset[str] = frozenset()
    axes: tuple[int, ...] | None = None
    mixed: bool = False
    activation: bool = False

    @property
    def learned(self) -> bool:
        """Whether it is computed from weights alone."""
        return bool(self.paths) and not self.mixed


_ACTIVATION = _Value(activation=True)
_CONSTANT = _Value()


def flow(owner: nn.Module, graph: fx.Graph) -> dict[fx.Node, list[Applied | Used]]:
    """Return what each node of a graph of one of the owner's methods does with Parameters, in order."""
    flowing = _Flow(owner)
    for node in graph.nodes:
        flowing.visit(node)
    return flowing.uses


class _Flow:
    def __init__(self, owner: nn.Module) -> None:
        self.uses: dict[fx.Node, list[Applied | Used]] = {}
        self._owner = owner
        self._values: dict[fx.Node, _Value] = {}

    def visit(self, node: fx.Node) -> None:
        self.uses[node] = []
        self._values[node] = self._value(node)

    def _value(self, node: fx.Node) -> _Value:
        """Note what a node does with Parameters, and return what it computes."""
        if node.op == "placeholder":
            return _ACTIVATION
        if node.op == "get_attr":
            return self._read(str(node.target))
        inputs = [self._values[n] for n in node.all_input_nodes]
        learned = [value for value in inputs if value.learned]
        if node.op == "output":
            return _CONSTANT
        if node.op == "call_module":
            return self._call_module(node, learned)
        function = function_of(node)
        product = product_of(function)
        if function is functional.multi_head_attention_forward:
            return self._attention(node)
        if product is not None:
            return self._product(product, node)
        if is_plain_function(function) and learned and any(value.activation for value in inputs):
            self._enter(node, function)
            return _ACTIVATION
        return self._compute(function, node, learned, inputs)

    def _enter(self, node: fx.Node, function: Any) -> None:
        """Note the weights that go into a function which is not traced, and whether it applies them."""
        given = inspect.signature(function).bind(*node.args, **node.kwargs).arguments
        for name, argument in given.items():
            entries = argument if isinstance(argument, list | tuple) else (argument,)
            for entry in entries:
                value = self._values[entry] if isinstance(entry, fx.Node) else _CONSTANT
                if value.learned:
                    inside = function if applies_argument(function, name) else None
                    self._use(node, [value], f"goes into {function.__name__}()", inside)

    def _use(self, node: fx.Node, learned: list[_Value], use: str, inside: Any = None) -> None:
        self.uses[node] += [Used(path, use, inside) for value in learned for path in sorted(value.paths)]

    def _read(self, path: str) -> _Value:
        holder, _, name = path.rpartition(".")
        value = getattr(self._owner.get_submodule(holder), name, None)  # a constant of the graph is not there
        if isinstance(value, nn.Parameter):
            return _Value(frozenset([path]), tuple(range(value.dim())))
        return _CONSTANT

    def _call_module(self, node: fx.Node, learned: list[_Value]) -> _Value:
        module = self._owner.get_submodule(str(node.target))
        if isinstance(module, ParametrizationList):
            holder, _, _ = str(node.target).rpartition("parametrizations.")
            layer = self._owner.get_submodule(holder.rstrip("."))
            return _Value(frozenset([f"{holder}{raw_weight(layer)}"]))
        inputs = [self._values[n] for n in node.all_input_nodes]
        plain = next(module.parameters(), None) is None
        if learned and plain and not any(value.activation for value in inputs):
            return _Value(frozenset(path for value in learned for path in value.paths))
        self._use(node, learned, f"input of {node.target}")
        return _ACTIVATION

    def _weights(self, function: Any, node: fx.Node, values: list[_Value]) -> list[_Value]:
        """Return those values, of all that make up a weight, which are weights; the others scale it."""
        sizes = []
        for value in values:
            parameters = [attribute(self._owner, path) for path in value.paths]
            sizes.append((max(p.dim() for p in parameters), max(p.numel() for p in parameters)))
        kept = those_that_count(function, sizes)
        scales = [value for index, value in enumerate(values) if index not in kept and value.learned]
        self._use(node, scales, "scale of a weight")
        return [values[index] for index in kept]

    def _product(self, product: Product, node: fx.Node) -> _Value:
        weights: list[tuple[int, _Value]] = []
        others = False
        for index, slot in enumerate(product.slots(node.args, node.kwargs)):
            operand = at(slot, node.args, node.kwargs)
            value = self._values.get(operand, _CONSTANT) if isinstance(operand, fx.Node) else _CONSTANT
            if value.learned or (value.mixed and index == product.weight):
                weights.append((index, value))
            else:
                others = others or value.activation
        paths = frozenset(path for _, value in weights for path in value.paths)
        if not others:
            return _Value(paths)
        if node.meta.get("without_gradients"):
            self._use(node, [value for _, value in weights], "applied without gradients")
            return _ACTIVATION
        for index, value in weights:
            if is_scale(product, index, node.args):
                self._use(node, [value], "scale")
                continue
            for path in sorted(value.paths):
                shape = tuple(attribute(self._owner, path).shape)
                axes = value.axes if len(value.paths) == 1 else None
                layout = operand_layout(product, index, shape, node.args, node.kwargs, axes)
                self.uses[node].append(Applied(path, f"{product.name}()", layout))
        return _Value(paths, mixed=bool(paths), activation=True)

    def _attention(self, node: fx.Node) -> _Value:
        for argument in (*node.args, *node.kwargs.values()):
            value = self._values.get(argument, _CONSTANT) if isinstance(argument, fx.Node) else _CONSTANT
            for path in sorted(value.paths) if value.learned else ():
                shape = tuple(attribute(self._owner, path).shape)
                if len(shape) == 2:
                    applied = Applied(path, "multi_head_attention_forward()", WeightLayout(shape))
                    self.uses[node].append(applied)
                elif len(shape) > 2:
                    self._use(node, [value], "bias of attention")
        return _ACTIVATION

    def _compute(self, function: Any, node: fx.Node, learned: list[_Value], inputs: list[_Value]) -> _Value:
        """Return what a function that is no product computes."""
        name = plain_name(function)
        if name in _NO_TENSORS or makes_new_values(function):
            return _CONSTANT
        activation = any(value.activation for value in inputs)
        weights = self._weights(function, node, [value for value in inputs if value.paths])
        paths = frozenset(path for value in weights for path in value.paths)
        if learned and activation:
            for entry in node.all_input_nodes:
                if self._values[entry].learned:
                    use = use_name(function, node.args, node.kwargs, entry)
                    self._use(node, [self._values[entry]], use)
            stack = self._values.get(looked_up_in(node.args, node.kwargs), _CONSTANT)
            others, named = node.args[1:], dict(node.kwargs)
            if stack.learned and stack.axes and looks_up_matrices(function, others, named, len(stack.axes)):
                return _Value(paths, axes_after(name, others, named, stack.axes))
            if not is_lookup(function) and not is_elementwise(function):
                return _ACTIVATION
            return _Value(paths, mixed=True, activation=True)
        if learned:
            traced = not is_plain_function(function)
            known = traced and (len(learned) == 1 or is_elementwise(function) or name == "stack")
            if name == "getitem" and node.all_input_nodes[0].op != "get_attr":
                return _Value(paths, weights[0].axes)  # perhaps one of several, as of `W.chunk(3)`
            axes = axes_after(name, node.args[1:], dict(node.kwargs), weights[0].axes) if known else None
            return _Value(paths, axes)
        if paths and keeps_mixtures(function):
            return _Value(paths, mixed=True, activation=True)
        return _ACTIVATION if activation else _CONSTANT


def attribute(owner: nn.Module, path: str) -> Any:
    """Return what a path of attributes leads to."""
    return operator.attrgetter(path)(owner)


def function_of(node: fx.Node) -> Callable[..., Any]:
    """Return the function that a node calls; for `getattr` of a tensor, the property."""
    if node.op == "call_method":
        return getattr(Tensor, str(node.target), _nothing)
    if node.target is getattr and isinstance(node.args[1], str):
        found = getattr(Tensor, node.args[1], _nothing)
        return getattr(found, "__get__", _nothing) if not callable(found) else found
    target: Any = node.target
    return target


def _nothing(*_: Any) -> None:
    """Stand for what no tensor has."""


_NO_TENSORS = frozenset(["shape", "size", "dim", "ndim", "device", "dtype", "numel", "len", "requires_grad"])
