"""A walk through a model's forwards, which tells what they do with learned weights.

It goes from the root down, each module as its parent calls it, in training and in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedParameter

from pfa_convert.feedback.layers import Layer
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.graph.code import weights_it_names
from pfa_convert.graph.flow import flow
from pfa_convert.graph.layers import COMPUTED, own_layer
from pfa_convert.graph.likeness import Likeness
from pfa_convert.graph.signatures import Call, call_of, call_with_everything
from pfa_convert.graph.sites import (
    Discovery,
    Site,
    is_container,
    is_weight,
    joined,
    site_name,
)
from pfa_convert.graph.standin import StandIn
from pfa_convert.graph.trace import Trace, trace_method
from pfa_convert.graph.uses import UNSUPPORTED, Applied, Generated, Used

REPLACED = "its forward was replaced on the instance, where no conversion reaches: give it to a class"
SCRIPTED = "a ScriptModule runs out of Python's sight: give the module as it was before torch.jit"


class Walk:
    """What is known so far, as the modules of a model are visited."""

    def __init__(self, model: nn.Module) -> None:
        self.found = Discovery()
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self._with_weights = {
            module for module in self.names if any(map(_may_be_weight, module.parameters()))
        }
        self._visited: set[tuple[nn.Module, Call]] = set()
        self._reached: set[nn.Module] = set()
        self.failures: dict[nn.Module, str] = {}
        self.unfinished: dict[tuple[nn.Module, str], None] = {}
        self.named = {module: weights_it_names(module) for module in self._with_weights}
        self._likeness = Likeness(model)
        self._stand_in = StandIn(model)
        self._traced: dict[tuple[int, Call], Trace] = {}

    def visit_as_it_must_be_called(self, module: nn.Module) -> None:
        """Visit a module, and what it calls, as it is called with no more than it must be given."""
        for training in (True, False):
            self._visit(module, training)

    def visit_what_was_not_reached(self) -> None:
        """Visit the modules that no forward has called, unless others apply their weights."""
        for module in self.names:
            if module not in self._reached and not self._applied_by_others(module):
                self.visit_as_it_must_be_called(module)

    def _applied_by_others(self, module: nn.Module) -> bool:
        """Say whether a layer that was not reached is one whose weights another module applies."""
        applied, name = self.found.applied(), self.names[module]
        layer = own_layer(module)
        return layer is not None and all(joined(name, w) in applied for w in layer.parameters(module))

    def _visit(self, module: nn.Module, training: bool, args: Any = (), kwargs: Any = None) -> None:
        """Visit a module for the first time that it is called like that."""
        if module not in self._with_weights:
            return
        layer = own_layer(module)
        if "forward" in vars(module):
            self._visit_replaced(module, layer, training)
            return
        if layer is not None:
            if module not in self._reached:
                self._reached.add(module)
                self._visit_layer(module, layer)
            return
        self._reached.add(module)
        if isinstance(module, torch.jit.ScriptModule):
            self._skip(module, module.named_parameters(), SCRIPTED)
        elif is_container(module):
            for child in module.children():
                self._visit(child, training)
        else:
            call = call_of(module, args, kwargs or {}, training)
            if (module, call) not in self._visited:
                self._visited.add((module, call))
                self._visit_forward(module, call)

    def _visit_replaced(self, module: nn.Module, layer: Layer | None, training: bool) -> None:
        """Skip what a module applies whose class's forward does not run, and visit what is inside it."""
        self._reached |= {module} if layer is None else set(module.modules())
        if layer is not None:
            applied = [(weight, module.get_parameter(weight)) for weight in layer.parameters(module)]
            self._skip(module, applied, REPLACED)
            return
        self._skip(module, module.named_parameters(recurse=False), REPLACED)
        for child in module.children():
            self._visit(child, training)

    def _skip(self, module: nn.Module, parameters: Iterable[tuple[str, Tensor]], reason: str) -> None:
        """Name each weight among a module's Parameters, which it applies out of sight."""
        for path, tensor in parameters:
            if tensor.dim() >= 2:
                self.found.skip(joined(self.names[module], path), module, tuple(tensor.shape), reason)

    def _visit_layer(self, module: nn.Module, layer: Layer) -> None:
        name = self.names[module]
        if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
            self.found.skip(name, module, (), "lazily built: run one batch through the model, then convert")
            return
        for weight in layer.parameters(module):
            path = joined(name, weight)
            holder, _, parameter = weight.rpartition(".")
            tensor = module.get_submodule(holder)._parameters.get(parameter)
            if tensor is None:
                self.found.skip(name, module, (), COMPUTED)
            elif tensor.numel():
                layout = layer.layout(module, tensor)
                self.found.add(Site(site_name(path), layer.kind.__name__, path, name, layout))
            else:
                self.found.used.setdefault(path, "nothing: it has no elements")

    def read(self, module: nn.Module, call: Call) -> None:
        """Read the graph of a module's method that is called like that."""
        self._read(module, self._trace(module, call), call)

    def _visit_forward(self, module: nn.Module, call: Call) -> None:
        """Read the forward's graph; where it is not whole, also that of a call with every argument given."""
        trace = self._trace(module, call)
        self._read(module, trace, call)
        everything = call_with_everything(module, call.training)
        named = self.named[module] - self.found.owners[self.names[module]]
        if trace.failure or named or self.unexplained(module):
            other = self._trace(module, everything)
            self._read(module, other, everything)
            trace = other if trace.failure else trace
        if trace.failure:
            self.failures.setdefault(module, trace.failure)
            for child in module.children():
                self._visit(child, call.training)

    def _trace(self, module: nn.Module, call: Call) -> Trace:
        """Return the graph of a module's method, which modules that are alike share."""
        key = self._likeness(module), call
        if key not in self._traced:
            self._traced[key] = trace_method(self._stand_in, module, call)
        return self._traced[key]

    def _trace_child(self, module: nn.Module, training: bool, child: nn.Module, node: fx.Node) -> Trace:
        """Return the graphs of a forward that a module's weights go into, called as by a node."""
        self.found.entered[self.names[module]].add(self.names[child])
        return self._trace(child, call_of(child, node.args, node.kwargs, training))

    def _read(self, module: nn.Module, trace: Trace, call: Call) -> None:
        """Take from graphs the uses of weights and the calls of modules, in the order of execution."""
        for graph in trace.graphs:
            notes = flow(module, graph, partial(self._trace_child, module, call.training))
            if notes.writes:
                self.found.writers.add(self.names[module])
            self.unfinished |= dict.fromkeys((module, path) for path in notes.unfinished)
            for node, uses in notes.uses.items():
                for use in uses:
                    self._take(module, use)
                if node.op == "call_module":
                    self._visit(module.get_submodule(str(node.target)), call.training, node.args, node.kwargs)

    def _take(self, module: nn.Module, use: Applied | Used | Generated) -> None:
        name = self.names[module]
        if isinstance(use, Generated):
            self.found.skip(joined(name, use.path), module.get_submodule(use.path), (), use.reason)
            return
        path = joined(name, use.path)
        weight = module.get_parameter(use.path)
        if isinstance(use, Used) and not (is_weight(weight) and use.inside is not None):
            if use.applies and weight.dim() > 1:
                self.found.skip(path, module, tuple(weight.shape), UNSUPPORTED[use.use])
            else:
                self.found.used.setdefault(path, use.use)
            return
        holder = module.get_submodule(use.path.rpartition(".")[0])
        layer = own_layer(holder)
        of_layer = layer is not None and use.path.rpartition(".")[2] in layer.parameters(holder)
        self.found.owners[name].add(use.path)
        if of_layer and isinstance(use, Used):
            self._visit(holder, module.training)
        elif isinstance(use, Applied):
            self.found.add(Site(site_name(path), use.kind, path, name, use.layout))
        else:
            layout = WeightLayout(tuple(weight.shape))
            self.found.add(Site(site_name(path), f"{use.inside.__name__}()", path, name, layout))

    def unexplained(self, module: nn.Module) -> list[str]:
        """Return the names of the module's own weights of which no graph has said anything yet."""
        name = self.names[module]
        own = [joined(name, own) for own, p in module.named_parameters(recurse=False) if is_weight(p)]
        known = self.found.applied() | self.found.used.keys() | self.found.skipped.keys()
        return [path for path in own if path not in known]


def _may_be_weight(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedParameter) or parameter.dim() >= 1
