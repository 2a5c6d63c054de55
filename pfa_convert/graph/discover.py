"""Finding every use of a learned weight in a model.

Every layer that applies a weight is a site, whether the walk reaches it or not. The walk through the
forwards, from the root down, gives the order of execution and finds the weights that a forward applies
itself; an example's run (`graph.example`) finds what no walk can.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from pfa_convert.feedback.layers import Layer, inherited_layer
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.graph.code import may_apply_weights, public_methods, reads_weight_of, weights_it_names
from pfa_convert.graph.flow import flow
from pfa_convert.graph.handed import is_handed_on
from pfa_convert.graph.layers import COMPUTED, own_layer, parametrized_weights
from pfa_convert.graph.likeness import Likeness
from pfa_convert.graph.signatures import Call, call_of, call_with_everything
from pfa_convert.graph.sites import (
    NOT_REACHED,
    Discovery,
    Site,
    is_container,
    is_weight,
    joined,
    plain_class,
    site_name,
)
from pfa_convert.graph.standin import StandIn
from pfa_convert.graph.trace import Trace, trace_method
from pfa_convert.graph.uses import UNSUPPORTED, Applied, Used

SCRIPTED = "a ScriptModule runs out of Python's sight: give the module as it was before torch.jit"


def discover(model: nn.Module) -> Discovery:
    """Walk through the model in training and in evaluation mode and collect the uses of weights."""
    walk = _Walk(model)
    walk.visit_as_it_must_be_called(model)
    reached = set(walk.found.sites)
    walk.visit_what_was_not_reached()
    sites = walk.found.sites
    # In the order of execution come those that were reached: the last site is that of the model's output.
    walk.found.sites = {key: sites[key] for key in sorted(sites, key=lambda key: key in reached)}
    walk.account()
    return walk.found


class _Walk:
    """What is known so far, as the modules of a model are visited."""

    def __init__(self, model: nn.Module) -> None:
        self.found = Discovery()
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._with_weights = {
            module for module in self._names if any(map(_may_be_weight, module.parameters()))
        }
        self._visited: set[tuple[nn.Module, Call]] = set()
        self._reached: set[nn.Module] = set()
        self._failures: dict[nn.Module, str] = {}
        self._named = {module: weights_it_names(module) for module in self._with_weights}
        self._likeness = Likeness(model)
        self._stand_in = StandIn(model)
        self._traced: dict[tuple[int, Call], Trace] = {}

    def visit_as_it_must_be_called(self, module: nn.Module) -> None:
        """Visit a module, and what it calls, as it is called with no more than it must be given."""
        for training in (True, False):
            self._visit(module, training)

    def visit_what_was_not_reached(self) -> None:
        """Visit the modules that no forward has called, unless others apply their weights."""
        for module in self._names:
            if module not in self._reached and not self._applied_by_others(module):
                self.visit_as_it_must_be_called(module)

    def account(self) -> None:
        """Say of each weight what became of it, if nothing has been said yet."""
        for module in self._names:
            self._account(module)

    def _applied_by_others(self, module: nn.Module) -> bool:
        """Say whether a layer that was not reached is one whose weights another module applies."""
        applied, name = self.found.applied(), self._names[module]
        layer = own_layer(module)
        return layer is not None and all(joined(name, w) in applied for w in layer.parameters(module))

    def _visit(self, module: nn.Module, training: bool, args: Any = (), kwargs: Any = None) -> None:
        """Visit a module for the first time that it is called like that."""
        if module not in self._with_weights:
            return
        layer = own_layer(module)
        if layer is not None:
            if module not in self._reached:
                self._reached.add(module)
                self._visit_layer(module, layer)
            return
        self._reached.add(module)
        if isinstance(module, torch.jit.ScriptModule):
            self._skip_all(module, SCRIPTED)
        elif is_container(module):
            for child in module.children():
                self._visit(child, training)
        else:
            call = call_of(module, args, kwargs or {}, training)
            if (module, call) not in self._visited:
                self._visited.add((module, call))
                self._visit_forward(module, call)

    def _skip_all(self, module: nn.Module, reason: str) -> None:
        """Name each weight of a module that cannot be looked into."""
        for path, tensor in module.named_parameters():
            if tensor.dim() >= 2:
                self.found.skip(joined(self._names[module], path), module, tuple(tensor.shape), reason)

    def _visit_layer(self, module: nn.Module, layer: Layer) -> None:
        name = self._names[module]
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

    def _visit_forward(self, module: nn.Module, call: Call) -> None:
        """Read the forward's graph; where it is not whole, also that of a call with every argument given."""
        trace = self._trace(module, call)
        self._read(module, trace, call)
        everything = call_with_everything(module, call.training)
        named = self._named[module] - self.found.owners[self._names[module]]
        if trace.failure or named or self._unexplained(module):
            other = self._trace(module, everything)
            self._read(module, other, everything)
            trace = other if trace.failure else trace
        if trace.failure:
            self._failures.setdefault(module, trace.failure)
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
        self.found.entered[self._names[module]].add(self._names[child])
        return self._trace(child, call_of(child, node.args, node.kwargs, training))

    def _read(self, module: nn.Module, trace: Trace, call: Call) -> None:
        """Take from graphs the uses of weights and the calls of modules, in the order of execution."""
        for graph in trace.graphs:
            for node, uses in flow(module, graph, partial(self._trace_child, module, call.training)).items():
                for use in uses:
                    self._take(module, use)
                if node.op == "call_module":
                    self._visit(module.get_submodule(str(node.target)), call.training, node.args, node.kwargs)

    def _take(self, module: nn.Module, use: Applied | Used) -> None:
        name = self._names[module]
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

    def _unexplained(self, module: nn.Module) -> list[str]:
        """Return the names of the module's own weights of which no graph has said anything yet."""
        name = self._names[module]
        own = [joined(name, own) for own, p in module.named_parameters(recurse=False) if is_weight(p)]
        known = self.found.applied() | self.found.used.keys() | self.found.skipped.keys()
        return [path for path in own if path not in known]

    def _account(self, module: nn.Module) -> None:
        """Say of each of a module's own weights what became of it, if nothing has been said yet."""
        name = self._names[module]
        user = self._user_of(module)
        failure = self._failures.get(user)
        if failure and may_apply_weights(module):
            self._follow_children(module)
        self._follow_named(module, failure)
        for method in public_methods(module) if self._unexplained(module) else ():
            everything = call_with_everything(module, True, method)
            self._read(module, self._trace(module, everything), everything)
        inherited = inherited_layer(module)
        unexplained = self._unexplained(module) if own_layer(module) is None else []
        if failure and inherited is not None:
            unexplained += self._parametrized(module, inherited)
        for path in unexplained:
            parameter = path.removeprefix(f"{name}.")
            shape = tuple(module.get_parameter(parameter).shape)
            if failure and inherited is not None and parameter in inherited.parameters(module):
                layout = inherited.layout(module, module.get_parameter(parameter))
                self.found.add(Site(site_name(path), plain_class(module).__name__, path, name, layout))
                self.found.owners[name].add(parameter)
            elif failure and (may_apply_weights(user) or is_handed_on(user, parameter)):
                self.found.skip(path, user, shape, _helped(user, failure))
            else:
                computes = isinstance(module, ParametrizationList)
                self.found.used[path] = "computes a weight" if computes else NOT_REACHED

    def _parametrized(self, module: nn.Module, layer: Layer) -> list[str]:
        """Return a layer's raw weights of which nothing has been said; name those without feedback."""
        known, found = self.found.applied() | self.found.skipped.keys(), []
        for parameter, reason in parametrized_weights(module, layer).items():
            path = joined(self._names[module], parameter)
            if reason is not None:
                shape = () if reason is COMPUTED else tuple(module.get_parameter(parameter).shape)
                self.found.skip(path, module, shape, reason)
            elif path not in known:
                found.append(path)
        return found

    def _user_of(self, module: nn.Module) -> nn.Module:
        """Return the module whose code uses a module's Parameters: for a mere list, the one that has it."""
        while is_container(module) and self._names[module]:
            module = self._model.get_submodule(self._names[module].rpartition(".")[0])
        return module

    def _follow_children(self, module: nn.Module) -> None:
        """Have a module that cannot be followed redirect its own uses of its children's weights."""
        for child_name, child in module.named_children():
            layer = own_layer(child)
            if layer is not None:
                applied = self.found.applied()
                own = [w for w in layer.parameters(child) if joined(self._names[child], w) in applied]
                self.found.owners[self._names[module]] |= {joined(child_name, w) for w in own}

    def _follow_named(self, module: nn.Module, failure: str | None) -> None:
        """Have a module redirect its uses, also those behind a flag, of the weights inside that it names.

        Where it cannot be followed, one that is no site might be applied without anyone's knowing.
        """
        name = self._names[module]
        for path in sorted(self._named.get(module, ())):
            weight = joined(name, path)
            if weight in self.found.applied():
                self.found.owners[name].add(path)
            elif failure and reads_weight_of(module, path):
                shape = tuple(module.get_parameter(path).shape)
                self.found.skip(weight, module, shape, _helped(module, failure))


def _may_be_weight(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedParameter) or parameter.dim() >= 1


def _helped(module: nn.Module, failure: str) -> str:
    """Return why a weight is skipped, with what helps."""
    kind = plain_class(module)
    if kind.__module__.startswith("torch.nn."):
        helps = "; convert(model, unroll=True) runs it step by step" if isinstance(module, nn.RNNBase) else ""
        return f"torch.nn.{kind.__name__} applies it inside one operation{helps}"
    return f"{failure}; convert(model, example=(args, kwargs)) sees what a run applies"
