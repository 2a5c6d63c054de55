"""What the graph of a forward says of each learned weight: applied by which product, or used for what else.

The graph is only read. A node is computed from weights alone, from constants alone, or an activation; the
same distinction that `feedback.follow` makes of tensors while a forward runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList

from pfa_convert.feedback.parametrized import raw_weight
from pfa_convert.feedback.products import product_of
from pfa_convert.graph.arguments import applies_argument
from pfa_convert.graph.computed import without_memory
from pfa_convert.graph.handed import arguments_of, merged, outputs, part_of, record_of
from pfa_convert.graph.layers import own_layer
from pfa_convert.graph.nodes import function_of, inputs_of
from pfa_convert.graph.notes import Notes
from pfa_convert.graph.results import Results
from pfa_convert.graph.signatures import method_of
from pfa_convert.graph.sites import joined, plain_class
from pfa_convert.graph.trace import Trace, is_plain_function
from pfa_convert.graph.uses import OF_ANOTHER_SHAPE
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


class _Flow(Results):
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
        super().__init__(owner, handed, without_gradients)
        self._trace = trace
        self._inside, self._given = inside, given or {}

    def read(self, graph: fx.Graph) -> list[Any]:
        """Visit all nodes of a graph; return what its result holds, in a list, if there is one."""
        for node in graph.nodes:
            self.uses[node] = []
            self.values[node] = self._value(node)
            self.write(node)
        if not any(node.op == "output" for node in graph.nodes):
            self.note_unfinished(graph)
        return [self.structure(output.args[0], output) for output in outputs(graph)]

    def _value(self, node: fx.Node) -> Value:
        """Note what a node does with Parameters, and return what it computes."""
        if node.op == "placeholder":
            return self.hold(node, self._given.get(str(node.target), ACTIVATION))
        if node.op == "get_attr":
            written = self.written.get(str(node.target))
            return written or self._read(joined(self._inside, str(node.target)))
        inputs = [self.given(node, n) for n in inputs_of(node)]
        learned = [value for value in inputs if value.learned]
        if node.op == "output":
            return CONSTANT
        if node.op == "call_module":
            return self._call_module(node)
        function = function_of(node)
        product = product_of(function)
        record = record_of(node)
        if record is not None:
            return self.hold(node, self.structure(record, node))
        if node.args and isinstance(node.args[0], fx.Node):
            part = part_of(self.parts.get(node.args[0]), node)
            if part is not None:
                return self.hold(node, part)
        if function is functional.multi_head_attention_forward:
            return self.of_attention(node)
        if product is not None:
            return self.of_product(product, node)
        if is_plain_function(function) and learned and any(value.activation for value in inputs):
            given = inspect.signature(function).bind(*node.args, **node.kwargs).arguments
            self._enter(
                node, function, self.structure(given, node), f"goes into {function.__name__}()", function
            )
            return ACTIVATION
        return self.of_function(function, node, learned, inputs)

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
        given = leaves(self.structure((node.args, node.kwargs), node))
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
        given = self.structure(arguments_of(module, node), node)
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
