"""`nn.MultiheadAttention`: its projections of queries, keys and values, packed or apart, and of the output.

PyTorch's own code runs; where it applies one of the weights, the error goes back through the feedback weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pfa_convert.feedback.layers.base import LAYERS, AppliedWeight
from pfa_convert.feedback.redirect import run_redirected


def attention_weights(layer: Any) -> Sequence[str]:
    """Return the names of the weights."""
    packed = layer._qkv_same_embed_dim
    projections = ["in_proj_weight"] if packed else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    return [*projections, "out_proj.weight"]


@LAYERS.register(nn.MultiheadAttention, weights=attention_weights, computed=False)
def attention_layer(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what `nn.MultiheadAttention` returns."""
    weights = [arg for arg in args if isinstance(arg, AppliedWeight)]
    inputs = args[len(weights) :]
    applied: list[Any] = [weight for weight in weights if weight.feedback is not None]
    return run_redirected(nn.MultiheadAttention.forward, applied, None, layer, *inputs, **kwargs)
