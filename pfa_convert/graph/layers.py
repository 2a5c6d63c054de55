"""Which modules are layers of a registered kind, and nothing besides; which weights they compute."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm

from pfa_convert.feedback.layers import Layer, layer_of
from pfa_convert.feedback.parametrized import is_computed
from pfa_convert.graph.code import may_apply_weights
from pfa_convert.graph.sites import plain_class

COMPUTED = "its weight is computed by a hook, or from no Parameter of its shape"
SPECTRAL = "spectral norm computes it within a layer that applies several weights at once"


def own_layer(module: nn.Module) -> Layer | None:
    """Return the kind of layer that a module is; None where its own code could apply weights besides.

    A forward of the user's own that does no more than call `super().forward(...)` is one of a layer.
    """
    layer = layer_of(module)
    if layer is None or plain_class(module).forward is layer.kind.forward:
        return layer
    return None if may_apply_weights(module) else layer


def parametrized_weights(module: nn.Module, layer: Layer) -> dict[str, str | None]:
    """Return the raw weights that a module's own parametrizations compute with, of those its kind applies.

    Each has the reason why it can have no feedback, or None. Spectral norm divides by a number of the
    weight's own, which for a feedback weight can be next to nothing.
    """
    found: dict[str, str | None] = {}
    for name, raw in zip(layer.weights(module), layer.parameters(module), strict=True):
        if "." in name or not is_computed(module, name):
            continue
        steps = module.get_submodule(f"parametrizations.{name}").modules()
        spectral = SPECTRAL if any(isinstance(step, _SpectralNorm) for step in steps) else None
        found[raw] = COMPUTED if raw == name else spectral
    return found
