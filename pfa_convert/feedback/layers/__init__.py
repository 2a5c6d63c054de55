"""The kinds of layers that apply learned weights, one file a kind; a new kind registers itself."""

from pfa_convert.feedback.layers.base import (
    LAYERS,
    AppliedWeight,
    Layer,
    applied_weight,
    forward_with_feedback,
    inherited_layer,
    layer_of,
)

__all__ = [
    "LAYERS",
    "AppliedWeight",
    "Layer",
    "applied_weight",
    "forward_with_feedback",
    "inherited_layer",
    "layer_of",
]
