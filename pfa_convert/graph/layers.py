"""Which modules of a model are layers of a registered kind, and nothing besides."""

from __future__ import annotations

from torch import nn

from pfa_convert.feedback.layers import Layer, layer_of
from pfa_convert.graph.code import may_apply_weights
from pfa_convert.graph.sites import plain_class


def own_layer(module: nn.Module) -> Layer | None:
    """Return the kind of layer that a module is; None where its own code could apply weights besides.

    A forward of the user's own that does no more than call `super().forward(...)` is one of a layer.
    """
    layer = layer_of(module)
    if layer is None or plain_class(module).forward is layer.kind.forward:
        return layer
    return None if may_apply_weights(module) else layer
