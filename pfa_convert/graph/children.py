"""Modules whose code goes through what they hold: it must not meet the feedback weights among it.

They are hidden from that alone: a module's state and its `modules()` have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.graph.code import lists_children
from pfa_convert.graph.sites import plain_class
from pfa_convert.graph.subclass import Module, change_class


def hide_feedback(holders: Iterable[nn.Module], model: nn.Module) -> None:
    """Have those of the modules that code of the model's may ask for what they hold name the user's own.

    They are containers with weights of their own, and others where the code asks any module for its children.
    """
    asked = any(map(lists_children, {plain_class(module): module for module in model.modules()}.values()))
    for holder in dict.fromkeys(holders):
        if (asked or isinstance(holder, _CONTAINERS)) and not isinstance(holder, _OwnChildren):
            change_class(holder, with_own_children)


def with_own_children(base: Module) -> Module:
    """Return a subclass that hides feedback weights where PyTorch's class says what a module holds."""
    inner = next(hiding for kind, hiding in _HIDING.items() if issubclass(base, kind))
    return type(base.__name__, (base, inner), {})


class _OwnChildren(nn.Module):
    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the user's own modules with their names."""
        for name, child in super().named_children():
            if not isinstance(child, FeedbackWeight):
                yield name, child

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the feedback weights too, which PyTorch looks for among the children."""
        for child in self._modules.values() if recurse else ():
            if isinstance(child, FeedbackWeight):
                child._apply(fn)
        return super()._apply(fn, recurse)


class _OwnEntries(_OwnChildren):
    def _own(self) -> dict[str, Any]:
        return {name: child for name, child in self._modules.items() if not isinstance(child, FeedbackWeight)}

    def __len__(self) -> int:
        return len(self._own())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._own().values())


class _OwnSequential(_OwnEntries, nn.Sequential):
    pass


class _OwnModuleList(_OwnEntries, nn.ModuleList):
    pass


class _OwnModuleDict(_OwnEntries, nn.ModuleDict):
    def __iter__(self) -> Iterator[str]:
        return iter(self._own())

    def keys(self) -> Any:
        """Return the names of the user's own modules."""
        return self._own().keys()

    def items(self) -> Any:
        """Return the user's own modules with their names."""
        return self._own().items()

    def values(self) -> Any:
        """Return the user's own modules."""
        return self._own().values()


_HIDING: dict[Module, Module] = {
    nn.Sequential: _OwnSequential,
    nn.ModuleList: _OwnModuleList,
    nn.ModuleDict: _OwnModuleDict,
    nn.Module: _OwnChildren,
}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
