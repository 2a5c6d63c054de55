"""What a child is handed and hands back: the values among the arguments of its call, and in its result."""

from __future__ import annotations

import inspect
import operator
from dataclasses import is_dataclass
from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_map

from pfa_convert.graph.arguments import hands_on
from pfa_convert.graph.code import may_apply_weights, own_methods
from pfa_convert.graph.layers import own_layer
from pfa_convert.graph.signatures import method_of, parameters_of
from pfa_convert.graph.values import whole


def arguments_of(module: nn.Module, node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a node's call of a module, by the placeholders of the module's graphs.

    There are none where the module cannot be called like that.
    """
    parameters = parameters_of(method_of(module))
    try:
        given = inspect.Signature(parameters).bind(*node.args, **node.kwargs).arguments
    except TypeError:
        return {}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            given |= {f"more_{n}": value for n, value in enumerate(given.get(parameter.name, ()))}
    return given


def is_handed_on(module: nn.Module, parameter: str) -> bool:
    """Say whether a module's code gives its Parameter to a module inside whose code could apply it."""
    given = {pair for _, method in own_methods(module) for pair in hands_on(method)}
    paths = [path for path, weight in given if weight == parameter]
    inside = [child for path, child in module.named_modules() if path in paths]
    return any(own_layer(child) is None and may_apply_weights(child) for child in inside)


def record_of(node: fx.Node) -> Any:
    """Return the fields of the named tuple or the data class that a node makes; None where it makes none."""
    kind: Any = node.target
    if not isinstance(kind, type):
        return None
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        args: tuple[Any, ...] = node.args
        return kind(*args, **node.kwargs)
    return dict(node.kwargs) if is_dataclass(kind) else None


def part_of(held: Any, node: fx.Node) -> Any:
    """Return what a node reads of a list, a tuple, a dictionary or a record; None where that is not known."""
    if node.target not in (operator.getitem, getattr) or held is None:
        return None
    name: Any = node.args[1]
    try:
        return held[name] if node.target is operator.getitem or isinstance(held, dict) else _field(held, name)
    except (TypeError, LookupError):
        return None


def _field(held: Any, name: Any) -> Any:
    return getattr(held, name) if name in getattr(held, "_fields", ()) else None


def outputs(graph: fx.Graph) -> list[fx.Node]:
    """Return the node of a graph's result, in a list that is empty where an error ended its tracing."""
    return [node for node in graph.nodes if node.op == "output"]


def merged(results: list[Any]) -> Any:
    """Return what all ways through a forward return, part by part where each returns the same parts."""
    try:
        return tree_map(lambda *ways: whole(ways), *results)
    except ValueError:
        return whole(results)
