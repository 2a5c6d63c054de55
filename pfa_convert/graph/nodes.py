"""What a node of a graph calls, and what a path of attributes leads to."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from pfa_convert.feedback.functions import takes_values_of_first


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


def inputs_of(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose values a node computes something of: of `W.to(x)` the first alone."""
    if node.op in ("call_function", "call_method") and takes_values_of_first(function_of(node)):
        return [entry for entry in node.args[:1] if isinstance(entry, fx.Node)]
    return node.all_input_nodes


def _nothing(*_: Any) -> None:
    """Stand for what no tensor has."""
