"""Which modules are alike: the blocks of a deep network, say, which share one graph between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pfa_convert.graph.standin import INTERNAL

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType)


class Likeness:
    """Numbers modules such that two with the same number have the same graph for the same call.

    Two modules are alike if they are of one class and their attributes, the shapes of their parameters and
    buffers, and their children are alike. An attribute that is not plain data is alike only to itself, and
    so is a Parameter that the model has under several names.
    """

    def __init__(self, model: nn.Module) -> None:
        names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        self._tied = {parameter for parameter, count in names.items() if count > 1}
        self._numbers: dict[Any, int] = {}
        self._of_module: dict[nn.Module, int] = {}

    def __call__(self, module: nn.Module) -> int:
        """Return the module's number."""
        if isinstance(module, torch.jit.ScriptModule):  # whose attributes are not Python's
            return self._numbers.setdefault(id(module), len(self._numbers))
        if module not in self._of_module:
            key = (
                type(module),
                _sorted(vars(module), _attribute, leave=INTERNAL),
                _sorted(module._parameters, self._tensor),
                _sorted(module._buffers, self._tensor),
                tuple((n, None if child is None else self(child)) for n, child in module._modules.items()),
            )
            self._of_module[module] = self._numbers.setdefault(key, len(self._numbers))
        return self._of_module[module]

    def _tensor(self, value: Tensor | None) -> Any:
        if value is None or id(value) in self._tied or is_lazy(value):
            return id(value)
        return type(value), value.shape, value.dtype


def _sorted(
    members: dict[str, Any], describe: Callable[[Any], Any], leave: frozenset[str] = frozenset()
) -> tuple[Any, ...]:
    return tuple((name, describe(members[name])) for name in sorted(members) if name not in leave)


def _attribute(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_attribute, value))
    if isinstance(value, (*_PLAIN, torch.dtype, torch.device)):
        return type(value), value
    return type(value), id(value)
