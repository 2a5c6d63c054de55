"""A throw-away stand-in of a model, whose modules are traced in the place of the user's.

The stand-in shares the model's parameters and buffers and has copies of everything else. So what a forward
does while it is traced (count, append, assign) is done to the stand-in and thrown away, and nothing of
PyTorch's is patched that other threads could be using.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from pfa_convert.graph.held import held
from pfa_convert.graph.sites import plain_class

MOST_HELD = 1000
"""So much of what a module's attributes hold is searched for what a tracing left there."""


@dataclass
class Tracing:
    """What a stand-in's modules do when they are called or read: what the present tracer says."""

    call: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any] | None = None
    read: Callable[[nn.Module, str, Any], Any] | None = None


class StandIn:
    """Makes the stand-ins of a model's modules; each when it is first asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.tracing = Tracing()
        self._of: dict[nn.Module, nn.Module] = {}
        self._tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._modules = {id(module): module for module in model.modules()}

    def __call__(self, module: nn.Module) -> nn.Module:
        """Return a module's stand-in, with those of all modules in it."""
        if module not in self._of:
            # A ScriptModule has no Python to follow; what stands in for it can be called, no more.
            scripted = isinstance(module, torch.jit.ScriptModule)
            plain = nn.Module if scripted else plain_class(module)
            self._of[module] = stand_in = object.__new__(_stand_in_class(plain))
            stand_in.__dict__.update(vars(nn.Module()), _tracing=self.tracing)
            if not scripted:
                self._copy(module)
        return self._of[module]

    def renew(self, module: nn.Module) -> nn.Module:
        """Return a module's stand-in as the user has the module, without what a tracing left in it."""
        stand_in = self(module)
        for inside in module.modules():
            if inside is module or holds_traced(self(inside)):
                self._copy(inside)
        return stand_in

    def _copy(self, module: nn.Module) -> None:
        stand_in = self(module)
        stand_in.__dict__.clear()
        stand_in.__dict__["_tracing"] = self.tracing
        for key, value in module.__dict__.items():
            stand_in.__dict__[key] = self._copied(key, value)
        for name, child in module._modules.items():  # whose truth value may be its own, as a length is
            stand_in._modules[name] = None if child is None else self(child)

    def _copied(self, key: str, value: Any) -> Any:
        """Return a copy of an attribute; what cannot be copied, and what is PyTorch's own, is shared."""
        if isinstance(value, nn.Module):
            return self(value)
        if key in ("_parameters", "_buffers", "_modules"):
            return copy.copy(value)
        if isinstance(value, _PLAIN) or key in INTERNAL:
            return value
        try:
            return copy.deepcopy(value, _Memo(self._tensors, self._modules, self))
        except Exception:
            return value


def holds_traced(module: nn.Module) -> bool:
    """Say whether a stand-in's attributes hold something that was computed while tracing."""
    attributes = [value for name, value in vars(module).items() if name not in INTERNAL]
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return any(isinstance(value, fx.Proxy) for value in (*tensors, *held(attributes, MOST_HELD)))


class _Memo(dict[int, Any]):
    """What `copy.deepcopy` takes for copied already: tensors as they are, and each module's stand-in.

    It is looked up and not filled, since a stand-in is made when it is first asked for.
    """

    def __init__(self, tensors: dict[int, Tensor], modules: dict[int, nn.Module], stand_in: StandIn) -> None:
        super().__init__()
        self._tensors, self._modules, self._stand_in = tensors, modules, stand_in

    def get(self, key: int, default: Any = None) -> Any:
        if key in self._tensors:
            return self._tensors[key]
        if key in self._modules:
            return self._stand_in(self._modules[key])
        return super().get(key, default)


INTERNAL = frozenset(vars(nn.Module())) - {"training"}
"""The attributes that PyTorch gives every module; they are no data of a user's."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size)


@cache
def _stand_in_class(plain: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass that is traced; it calls itself as the class that it stands for."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        tracing: Tracing = self.__dict__["_tracing"]
        if tracing.call is None:
            return plain.__call__(self, *args, **kwargs)
        return tracing.call(self, args, kwargs)

    def read(self: Any, name: str) -> Any:
        value = plain.__getattr__(self, name)
        tracing: Tracing | None = self.__dict__.get("_tracing")
        if tracing is None or tracing.read is None or not isinstance(value, Tensor):
            return value
        return tracing.read(self, name, value)

    def write(self: Any, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy):
            self.__dict__[name] = value
        else:
            plain.__setattr__(self, name, value)

    members = {"__call__": call, "__getattr__": read, "__setattr__": write, "__module__": plain.__module__}
    return type(plain.__name__, (plain,), members)
