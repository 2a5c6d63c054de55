"""`nn.Bilinear`: `y_o = x1^T W_o x2 + b_o`; the error of both inputs goes through the feedback weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pfa_convert.feedback.layers.base import LAYERS, AppliedWeight
from pfa_convert.feedback.redirect import run_redirected


@LAYERS.register(nn.Bilinear, computed=False)
def bilinear_layer(layer: Any, weight: AppliedWeight, input1: Tensor, input2: Tensor) -> Tensor:
    """Return `(*, N_out)` for inputs `(*, N_1)` and `(*, N_2)`; the weight is `(N_out, N_1, N_2)`."""
    applied: list[Any] = [] if weight.feedback is None else [weight]
    return run_redirected(nn.Bilinear.forward, applied, None, layer, input1, input2)
