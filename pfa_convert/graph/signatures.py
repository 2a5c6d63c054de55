"""How a module is called, as far as the graph of its forward depends on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from pfa_convert.graph.sites import plain_class

TENSOR = "<traced>"
"""Stands for an argument that is traced, in the place of one that is baked into the graph."""

BAKED_TYPES = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Call:
    """How a module is called: which method, in which mode, and with which value for each argument.

    torch.fx cannot follow control flow that depends on a traced argument, such as `if mask is not None`;
    so an optional argument that is given as a plain value, or not at all, is baked into the graph.
    `options` has an entry for each argument with a default, `more` is the number of `*args`.
    """

    training: bool
    options: tuple[Any, ...]
    more: int = 0
    method: str = "forward"


@cache
def parameters_of(method: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of an unbound method, self aside."""
    return tuple(inspect.signature(method).parameters.values())[1:]


def method_of(module: nn.Module, name: str = "forward") -> Callable[..., Any]:
    """Return a method of the class that the user wrote, also after a rewrite."""
    method: Callable[..., Any] = getattr(plain_class(module), name)
    return method


def call_of(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], training: bool) -> Call:
    """Return how a module's forward is called by these arguments."""
    options: list[Any] = []
    named = 0
    for index, parameter in enumerate(parameters_of(method_of(module))):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        named += parameter.kind is not parameter.KEYWORD_ONLY
        value = args[index] if index < len(args) else kwargs.get(parameter.name, parameter.default)
        if parameter.default is not inspect.Parameter.empty:
            options.append(value if isinstance(value, BAKED_TYPES) else TENSOR)
    return Call(training, tuple(options), max(0, len(args) - named))


def call_with_everything(module: nn.Module, training: bool, method: str = "forward") -> Call:
    """Return the call of a method that is given a tensor for each argument, optional ones too."""
    parameters = parameters_of(method_of(module, method))
    options = [TENSOR for p in parameters if p.default is not inspect.Parameter.empty]
    return Call(training, tuple(options), _takes_more(parameters), method)


def _takes_more(parameters: Sequence[inspect.Parameter]) -> int:
    return int(any(p.kind is p.VAR_POSITIONAL for p in parameters))
