"""`nn.Linear`: `y = x W^T + b`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pfa_convert.feedback.functional import linear
from pfa_convert.feedback.layers.base import LAYERS, AppliedWeight


@LAYERS.register(nn.Linear)
def linear_layer(layer: Any, weight: AppliedWeight, input: Tensor) -> Tensor:
    """Return `(*, N_out)` for an input `(*, N_in)`."""
    return linear(input, weight.value, layer.bias, feedback=weight.feedback)
