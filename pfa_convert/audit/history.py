"""What autograd remembers of a tensor that was computed before the run that is watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pfa_convert.audit.data import ACTIVATION, CONSTANT, Data, Kind
from pfa_convert.feedback.direct import DirectPass
from pfa_convert.feedback.pathway import FeedbackPass


def data_left(tensor: Tensor, names: Mapping[Tensor, str]) -> Data:
    """Return what is known of a tensor that an earlier run left in an attribute.

    It is a weight if it was computed from the named Parameters, but an activation (the state of a recurrent
    network) if a layer with feedback took part; without a history it counts as a constant.
    """
    found: set[str] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "_forward_cls", None) in (FeedbackPass, DirectPass):
            return ACTIVATION
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf in names:
            found.add(names[leaf])
        waiting += [edge for edge, _ in node.next_functions]
    return Data(Kind.LEARNED, frozenset(found)) if found else CONSTANT
