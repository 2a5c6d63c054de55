"""What stands for a value while a forward is traced, and what is known of its sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partialmethod
from typing import Any

from torch import fx

SIZE = 4
"""What a traced size is taken for where no number is known: small, as what must not be too long is."""

DIMENSIONS = 4
"""How many a traced value is taken to have, as images do, where a forward goes through all of them."""


class TracedValue(fx.Proxy):
    """A traced value that can be written to, as a tensor can."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def _in_place(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    # torch.fx has `a += b` for `a = a + b`, which leaves other names of `a` as they were.
    __iadd__ = partialmethod(_in_place, operator.iadd)
    __isub__ = partialmethod(_in_place, operator.isub)
    __imul__ = partialmethod(_in_place, operator.imul)
    __itruediv__ = partialmethod(_in_place, operator.itruediv)
    __ifloordiv__ = partialmethod(_in_place, operator.ifloordiv)
    __imod__ = partialmethod(_in_place, operator.imod)
    __ipow__ = partialmethod(_in_place, operator.ipow)

    def __len__(self) -> int:
        size = self.tracer.size  # type: ignore[attr-defined]
        if size is None:
            # No RuntimeError, as torch.fx has it: `list()` and `*` ask for the length, and do without.
            raise TypeError("the length of a traced value is not known")
        return int(size)

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _TracedAttribute(self, k)


class _TracedAttribute(fx.proxy.Attribute):
    """An attribute of a traced value; of its length nothing is known."""

    __len__ = TracedValue.__len__


def sizes_of(node: fx.Node) -> int | None:
    """Return how many sizes a node holds: some number, since the graph is only read."""
    if _is_shape(node):
        return DIMENSIONS
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        sizes, item = sizes_of(node.args[0]), node.args[1]
        if sizes is None or not isinstance(item, slice):
            return None
        ends = (item.start, item.stop, item.step)
        return None if any(isinstance(end, fx.Node) for end in ends) else len(range(sizes)[item])
    return None


def is_one_size(kind: str, target: Any, args: Any) -> bool:
    """Say whether a call is `x.size(d)`, `x.size()[d]` or `x.shape[d]`."""
    if kind == "call_method":
        return target == "size" and len(args) == 2
    if target is not operator.getitem or not isinstance(args[0], fx.Proxy) or not isinstance(args[1], int):
        return False
    return _is_shape(args[0].node)


def _is_shape(node: fx.Node) -> bool:
    """Say whether a node is `x.size()` or `x.shape`."""
    if node.target == "size":
        return len(node.args) == 1
    return node.target is getattr and bool(node.args[1] == "shape")
