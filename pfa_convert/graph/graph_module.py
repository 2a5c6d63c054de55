"""Converted modules of torch.fx: a GraphModule makes itself a class when it is copied or edited."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx

from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.graph.sites import KEPT_ATTRIBUTES


def graph_module_methods(change_again: Callable[[Any, Any], None]) -> dict[str, Any]:
    """Return the methods of a converted GraphModule; `change_again(module, changes)` changes a class anew."""

    def deepcopy(self: Any, memo: Any) -> Any:
        """Copy what the graph names, as torch.fx does, and the feedback state, which it does not name."""
        copied = _as_plain(self, fx.GraphModule.__deepcopy__, memo)
        for name, module in self.named_modules():
            holder, _, own = name.rpartition(".")
            if isinstance(module, FeedbackWeight) and own not in copied.get_submodule(holder)._modules:
                copied.get_submodule(holder).add_module(own, copy.deepcopy(module, memo))
        kept = {key: self.__dict__[key] for key in KEPT_ATTRIBUTES if key in self.__dict__}
        copied.__dict__.update(copy.deepcopy(kept, memo))
        change_again(copied, type(self).changes)
        return copied

    def recompile(self: Any) -> Any:
        """Make the code of the graph anew, and redirect it again."""
        changes = type(self).changes
        self.__class__ = type(self).plain_class
        code = self.recompile()
        change_again(self, changes)
        return code

    return {"__deepcopy__": deepcopy, "recompile": recompile}


def _as_plain(module: Any, function: Callable[..., Any], *args: Any) -> Any:
    cls = type(module)
    module.__class__ = cls.plain_class
    try:
        return function(module, *args)
    finally:
        module.__class__ = cls
