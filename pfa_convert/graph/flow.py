"""What the graph of a forward says of each learned weight: applied by which product, or used for what else.

The graph is only read. A node is computed from weights alone, from constants alone, or an activation; the
same distinction that `feedback.follow` makes of tensors while a forward runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList

from pfa_convert.feedback.calls import at
from pfa_convert.feedback.functions import (
    axes_after,
    is_elementwise,
    is_lookup,
    keeps_mixtures,
    makes_new_values,
    plain_name,
    those_that_count,
)
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.lookup import looked_up_in, takes_matrices
from pfa_convert.feedback.parametrized import raw_weight
from pfa_convert.feedback.products import Product, is_scale, product_of
from pfa_convert.graph.arguments import applies_argument
from pfa_convert.graph.computed import layout_of_factor, product_of_weights, result_like, without_memory
from pfa_convert.graph.handed import arguments_of, merged, part_of, record_of, returned
from pfa_convert.graph.layers import own_layer
from pfa_convert.graph.nodes import attribute, function_of
from pfa_convert.graph.notes import Notes
from pfa_convert.graph.signatures import method_of
from pfa_convert.graph.sites import joined, plain_class
from pfa_convert.graph.trace import Trace, is_plain_function
from pfa_convert.graph.uses import (
    ASSEMBLED,
    OF_ANOTHER_SHAPE,
    SCALE_OF_A_WEIGHT,
    Applied,
    Generated,
    use_name,
)
from pfa_convert.graph.values import ACTIVATION, CONSTANT, Value, layers_of, leaves, whole

TraceChild = Callable[[nn.Module, fx.Node], Trace]
"""Returns the graphs of a child's forward, called as a node does."""


def flow(owner: nn.Module, graph: fx.Graph, trace: TraceChild) -> Notes:
    """Return what is to be said of each node of a graph of one of the owner's methods, in order.

    A weight that is handed to a child is followed into the child's graphs.
    """
    flowing = _Flow(owner, trace)
    flowing.read(graph)
    return flowing


class _Flow(Notes):
    """Reads a graph of the owner's, or of a child `inside` it that is `given` values.

    Of a child's graphs only what is done with the Parameters it is `handed` counts: what it does with its own
    it does also where nobody hands it anything.
    """

    def __init__(
        self,
        owner: nn.Module,
        trace: TraceChild,
        inside: str = "",
        given: Mapping[str, Any] | None = None,
        handed: frozenset[str] | None = None,
        without_gradients: bool = False,
    ) -> None:
        super().__init__(handed)
        self._owner, self._trace = owner, trace
        self._inside, self._given = inside, given or {}
        self._without_gradients = without_gradients

    def read(self, graph: fx.Graph) -> list[Any]:
        """Visit all nodes of a graph; return what its result holds, in a list, if there is one."""
        for node in graph.nodes:
            self.uses[node] = []
            self.values[node] = self._value(node)
            self.write(node)
        if not any(node.op == "output" for node in graph.nodes):
            self.note_unfinished(graph)
        return [self.structure(result) for result in returned(graph)]

    def _value(self, node: fx.Node) -> Value:
        """Note what a node does with Parameters, and return what it computes."""
        if node.op == "placeholder":
            return self.hold(node, self._given.get(str(node.target), ACTIVATION))
        if node.op == "get_attr":
            written = self.written.get(str(node.target))
            return written or self._read(joined(self._inside, str(node.target)))
        inputs = [self.values[n] for n in node.all_input_nodes]
        learned = [value for value in inputs if value.learned]
        if node.op == "output":
            return CONSTANT
        if node.op == "call_module":
            return self._call_module(node)
        function = function_of(node)
        product = product_of(function)
        record = record_of(node)
        if record is not None:
            return self.hold(node, self.structure(record))
        if node.args and isinstance(node.args[0], fx.Node):
            part = part_of(self.parts.get(node.args[0]), node)
            if part is not None:
                return self.hold(node, part)
        if function is functional.multi_head_attention_forward:
            return self._attention(node)
        if product is not None:
            return self._product(product, node)
        if is_plain_function(function) and learned and any(value.activation for value in inputs):
            given = inspect.signature(function).bind(*node.args, **node.kwargs).arguments
            self._enter(node, function, self.structure(given), f"goes into {function.__name__}()", function)
            return ACTIVATION
        return self._compute(function, node, learned, inputs)

    def _enter(self, node: fx.Node, code: Any, given: Mapping[str, Any], use: str, called: Any) -> None:
        """Note the weights that are given to code which is not traced, and whether that applies them."""
        for name, argument in given.items():
            learned = [value for value in leaves(argument) if value.learned]
            applies = learned and is_plain_function(code) and applies_argument(code, name)
            self.use(node, learned, use, called if applies else None)

    def _read(self, path: str) -> Value:
        holder, _, name = path.rpartition(".")
        value = getattr(self._owner.get_submodule(holder), name, None)  # a constant of the graph is not there
        if isinstance(value, nn.Parameter):
            return Value(frozenset([path]), tuple(range(value.dim())), like=without_memory(value))
        return Value(like=without_memory(value)) if isinstance(value, torch.Tensor) else CONSTANT

    def _call_module(self, node: fx.Node) -> Value:
        path = joined(self._inside, str(node.target))
        module = self._owner.get_submodule(path)
        if isinstance(module, ParametrizationList):
            return self._parametrized(node, path)
        given = leaves(self.structure((node.args, node.kwargs)))
        learned = [value for value in given if value.learned]
        activation = any(value.activation for value in given)
        closed = own_layer(module) is not None or isinstance(module, torch.jit.ScriptModule)
        if not closed and (learned or not activation):
            made = self._follow(node, module, path)
            told = made.paths | {use.path for use in self.uses[node]}
            learned = [value for value in learned if not value.paths <= told]
        else:
            made = self._made_by(module, path, given)
        self.use(node, learned, f"input of {path}")
        return made

    def _made_by(self, module: nn.Module, path: str, given: list[Value]) -> Value:
        """Return what a module that is not followed makes of what it is given."""
        layers = layers_of(given)
        if own_layer(module) is not None and (layers or not any(value.activation for value in given)):
            layers = frozenset([path])
        return Value(activation=True, layers=layers)

    def _parametrized(self, node: fx.Node, chain: str) -> Value:
        """Return the raw weight of a computed one; where none has its shape, note what computes it."""
        holder, _, name = chain.rpartition("parametrizations.")
        raw = raw_weight(self._owner.get_submodule(holder.rstrip(".")), name)
        if raw != name:
            return Value(frozenset([f"{holder}{raw}"]))
        originals = self._owner.get_submodule(chain).named_parameters(recurse=False)
        of_another_shape = [Value(frozenset([f"{chain}.{original}"])) for original, _ in originals]
        self.use(node, of_another_shape, OF_ANOTHER_SHAPE)
        return ACTIVATION

    def _follow(self, node: fx.Node, module: nn.Module, path: str) -> Value:
        """Note what a child does with the weights it is handed, and return what it makes of them."""
        trace = self._trace(module, node)
        given = self.structure(arguments_of(module, node))
        handed = whole(given)
        counting = handed.paths if self.handed is None else self.handed
        without = self._without_gradients or node.meta.get("without_gradients", False)
        results: list[Any] = []
        for graph in trace.graphs:
            child = _Flow(self._owner, self._trace, path, given, counting, without)
            results += child.read(graph)
            self.uses[node] += [use for uses in child.uses.values() for use in uses]
            self.unfinished += child.unfinished
            self.writes |= child.writes
        if results and trace.failure is None:
            return self.hold(node, merged(results))
        if handed.activation or not handed.paths:
            self._enter(node, method_of(module), given, f"input of {path}", plain_class(module))
            return ACTIVATION
        return Value(handed.paths)

    def _weights(self, function: Any, node: fx.Node, values: list[Value], note: bool) -> list[Value]:
        """Return those values, of all that make up a weight, which are weights; the others scale it."""
        sizes = []
        for value in values:
            parameters = [attribute(self._owner, path) for path in value.paths]
            sizes.append((max(p.dim() for p in parameters), max(p.numel() for p in parameters)))
        kept = those_that_count(function, sizes)
        scales = [value for index, value in enumerate(values) if index not in kept and value.learned]
        self.use(node, scales if note else [], SCALE_OF_A_WEIGHT)
        return [values[index] for index in kept]

    def _product(self, product: Product, node: fx.Node) -> Value:
        weights: list[tuple[int, Value]] = []
        others: list[Value] = []
        generated = CONSTANT
        for index, slot in enumerate(product.slots(node.args, node.kwargs)):
            operand = at(slot, node.args, node.kwargs)
            value = self.values.get(operand, CONSTANT) if isinstance(operand, fx.Node) else CONSTANT
            if value.learned or (value.mixed and index == product.weight):
                weights.append((index, value))
            else:
                others.append(value)
                generated = value if value.layers and index == product.weight else generated
        paths = frozenset(path for _, value in weights for path in value.paths)
        if not any(value.activation for value in others):
            like = result_like(function_of(node), node, self.values)
            return product_of_weights(product, node, [value for _, value in weights], like)
        if node.meta.get("without_gradients") or self._without_gradients:
            self.use(node, [value for _, value in weights], "applied without gradients")
            return ACTIVATION
        self.writes |= any(value.written for value in others) and bool(weights)
        if not layers_of(others):
            self.uses[node] += [Generated(layer, f"{product.name}()") for layer in sorted(generated.layers)]
        for index, value in ((index, value) for index, value in weights if self.counts(value)):
            if value.written:
                self.use(node, [value], ASSEMBLED)
                continue
            if is_scale(product, index, node.args):
                self.use(node, [value], "scale")
                continue
            for path in sorted(value.paths):
                shape = tuple(attribute(self._owner, path).shape)
                layout = layout_of_factor(product, index, path, value, shape, node.args, node.kwargs)
                self.uses[node].append(Applied(path, f"{product.name}()", layout))
        return Value(paths, mixed=bool(paths), activation=True, layers=layers_of(others))

    def _attention(self, node: fx.Node) -> Value:
        for argument in (*node.args, *node.kwargs.values()):
            value = self.values.get(argument, CONSTANT) if isinstance(argument, fx.Node) else CONSTANT
            for path in sorted(value.paths) if value.learned and self.counts(value) else ():
                shape = tuple(attribute(self._owner, path).shape)
                if len(shape) == 2:
                    applied = Applied(path, "multi_head_attention_forward()", WeightLayout(shape))
                    self.uses[node].append(applied)
                elif len(shape) > 2:
                    self.use(node, [value], "bias of attention")
        return ACTIVATION

    def _compute(self, function: Any, node: fx.Node, learned: list[Value], inputs: list[Value]) -> Value:
        """Return what a function that is no product computes."""
        name = plain_name(function)
        if name in _NO_TENSORS or makes_new_values(function):
            return CONSTANT
        activation = any(value.activation for value in inputs)
        applied = bool(learned) and activation
        weights = self._weights(function, node, [value for value in inputs if value.paths], not applied)
        paths = frozenset(path for value in weights for path in value.paths)
        if applied:
            for entry in node.all_input_nodes:
                if self.values[entry].learned:
                    use = use_name(function, node.args, node.kwargs, entry)
                    self.use(node, [self.values[entry]], use)
            stack = self.values.get(looked_up_in(node.args, node.kwargs), CONSTANT)
            others, named = node.args[1:], dict(node.kwargs)
            if stack.learned and stack.dimensions and takes_matrices(name, others, named, stack.dimensions):
                return replace(stack, axes=axes_after(name, others, named, stack.axes), like=None)
            if not is_lookup(function) and not is_elementwise(function):
                return ACTIVATION
            return Value(paths, mixed=True, activation=True)
        if learned:
            traced = not is_plain_function(function)
            known = traced and (len(learned) == 1 or is_elementwise(function) or name == "stack")
            like = result_like(function, node, self.values)
            axes = weights[0].axes
            if name != "getitem" or node.all_input_nodes[0].op == "get_attr" or like is not None:
                size = None if like is None else like.dim()
                axes = axes_after(name, node.args[1:], dict(node.kwargs), axes, size) if known else None
            # Else it is perhaps one of several, as of `W.chunk(3)`.
            factors = weights[0].factors if len(weights) == 1 else ()
            written = any(value.written for value in learned)
            return Value(paths, axes, written=written, factors=factors, like=like)
        if paths and keeps_mixtures(function):
            return Value(paths, mixed=True, activation=True)
        if not activation:
            return CONSTANT
        written = all(value.written for value in inputs if value.activation)
        return Value(activation=True, written=written, layers=layers_of(inputs))


_NO_TENSORS = frozenset(["shape", "size", "dim", "ndim", "device", "dtype", "numel", "len", "requires_grad"])
