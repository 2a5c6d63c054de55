"""What autograd remembers of a tensor that was computed before the run that is watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pfa_convert.audit.data import ACTIVATION, CONSTANT, Data, Kind
from pfa_convert.feedback.direct import DirectPass
from pfa_convert.feedback.pathway import FeedbackPass

LOOKUPS = ("Embedding", "Index", "Gather", "Take")
"""How the names of autograd's operations begin whose indices could be anything."""

LONGEST = 1000
"""The number of steps of a history that are looked at."""


def data_left(tensor: Tensor, names: Mapping[Tensor, str]) -> Data:
    """Return what is known of a tensor that an earlier run left in an attribute.

    It is a weight if it was computed from the named Parameters alone, an activation (the state of a recurrent
    network) if a layer with feedback took part, and counts as a constant where neither is certain: autograd
    knows nothing of what has no gradient.
    """
    found: set[str] = set()
    alone = True
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting and len(seen) < LONGEST:
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
        unknown = any(edge is None for edge, _ in node.next_functions)
        alone = alone and not unknown and not node.name().startswith(LOOKUPS)
    return Data(Kind.LEARNED, frozenset(found)) if found and alone and not waiting else CONSTANT
