"""Finding every use of a learned weight in a model.

Every layer that applies a weight is a site, whether the walk reaches it or not. The walk through the
forwards, from the root down, gives the order of execution and finds the weights that a forward applies
itself; an example's run (`graph.example`) finds what no walk can.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from pfa_convert.feedback.layers import Layer, inherited_layer
from pfa_convert.graph.code import may_apply_weights, public_methods, reads_weight_of
from pfa_convert.graph.handed import is_handed_on
from pfa_convert.graph.layers import COMPUTED, own_layer, parametrized_weights
from pfa_convert.graph.signatures import call_with_everything
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
from pfa_convert.graph.walk import Walk


def discover(model: nn.Module) -> Discovery:
    """Walk through the model in training and in evaluation mode and collect the uses of weights."""
    walk = Walk(model)
    walk.visit_as_it_must_be_called(model)
    reached = set(walk.found.sites)
    walk.visit_what_was_not_reached()
    sites = walk.found.sites
    # In the order of execution come those that were reached: the last site is that of the model's output.
    walk.found.sites = {key: sites[key] for key in sorted(sites, key=lambda key: key in reached)}
    rest = _Rest(walk)
    rest.skip_unfinished()
    for module in model.modules():
        rest.account(module)
    return walk.found


class _Rest:
    """Says of the weights that no graph has said anything of what became of them."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._found = walk.found

    def skip_unfinished(self) -> None:
        """Skip the weights that a forward had scaled or looked up, to apply them, where tracing it ended."""
        for module, parameter in self._walk.unfinished:
            path = joined(self._walk.names[module], parameter)
            weight, failure = module.get_parameter(parameter), self._walk.failures.get(module)
            known = path in self._found.applied()
            if failure and is_weight(weight) and not known and may_apply_weights(module):
                self._found.used.pop(path, None)
                self._found.skip(path, module, tuple(weight.shape), _helped(module, failure))

    def account(self, module: nn.Module) -> None:
        """Say of each of a module's own weights what became of it, if nothing has been said yet."""
        name = self._walk.names[module]
        user = self._user_of(module)
        failure = self._walk.failures.get(user)
        if failure and may_apply_weights(module):
            self._follow_children(module)
        self._follow_named(module, failure)
        for method in public_methods(module) if self._walk.unexplained(module) else ():
            self._walk.read(module, call_with_everything(module, True, method))
        inherited = inherited_layer(module)
        unexplained = self._walk.unexplained(module) if own_layer(module) is None else []
        if failure and inherited is not None:
            unexplained += self._parametrized(module, inherited)
        for path in unexplained:
            parameter = path.removeprefix(f"{name}.")
            shape = tuple(module.get_parameter(parameter).shape)
            if failure and inherited is not None and parameter in inherited.parameters(module):
                layout = inherited.layout(module, module.get_parameter(parameter))
                self._found.add(Site(site_name(path), plain_class(module).__name__, path, name, layout))
                self._found.owners[name].add(parameter)
            elif failure and (may_apply_weights(user) or is_handed_on(user, parameter)):
                self._found.skip(path, user, shape, _helped(user, failure))
            else:
                computes = isinstance(module, ParametrizationList)
                self._found.used[path] = "computes a weight" if computes else NOT_REACHED

    def _parametrized(self, module: nn.Module, layer: Layer) -> list[str]:
        """Return a layer's raw weights of which nothing has been said; name those without feedback."""
        known, found = self._found.applied() | self._found.skipped.keys(), []
        for parameter, reason in parametrized_weights(module, layer).items():
            path = joined(self._walk.names[module], parameter)
            if reason is not None:
                shape = () if reason is COMPUTED else tuple(module.get_parameter(parameter).shape)
                self._found.skip(path, module, shape, reason)
            elif path not in known:
                found.append(path)
        return found

    def _user_of(self, module: nn.Module) -> nn.Module:
        """Return the module whose code uses a module's Parameters: for a mere list, the one that has it."""
        while is_container(module) and self._walk.names[module]:
            module = self._walk.model.get_submodule(self._walk.names[module].rpartition(".")[0])
        return module

    def _follow_children(self, module: nn.Module) -> None:
        """Have a module that cannot be followed redirect its own uses of its children's weights."""
        for child_name, child in module.named_children():
            layer = own_layer(child)
            if layer is not None:
                applied = self._found.applied()
                own = [w for w in layer.parameters(child) if joined(self._walk.names[child], w) in applied]
                self._found.owners[self._walk.names[module]] |= {joined(child_name, w) for w in own}

    def _follow_named(self, module: nn.Module, failure: str | None) -> None:
        """Have a module redirect its uses, also those behind a flag, of the weights inside that it names.

        Where it cannot be followed, one that is no site might be applied without anyone's knowing.
        """
        name = self._walk.names[module]
        for path in sorted(self._walk.named.get(module, ())):
            weight = joined(name, path)
            if weight in self._found.applied():
                self._found.owners[name].add(path)
            elif failure and reads_weight_of(module, path):
                shape = tuple(module.get_parameter(path).shape)
                self._found.skip(weight, module, shape, _helped(module, failure))


def _helped(module: nn.Module, failure: str) -> str:
    """Return why a weight is skipped, with what helps."""
    kind = plain_class(module)
    if kind.__module__.startswith("torch.nn."):
        helps = "; convert(model, unroll=True) runs it step by step" if isinstance(module, nn.RNNBase) else ""
        return f"torch.nn.{kind.__name__} applies it inside one operation{helps}"
    return f"{failure}; convert(model, example=(args, kwargs)) sees what a run applies"
