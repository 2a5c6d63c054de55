"""What is found in a model: sites, and what is skipped; and the names that both go by."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import nn

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.weight import FEEDBACK_ATTRIBUTE


@dataclass(frozen=True)
class Site:
    """A use of a learned weight in a linear map or a convolution.

    `name` is the qualified name of the layer (or of the parameter, where no layer carries it), `owner`
    that of the module whose forward applies the weight, `weight` that of the parameter; `kind` the
    type of the layer, or of the function followed by `()`.
    """

    name: str
    kind: str
    weight: str
    owner: str
    layout: WeightLayout

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the forward weight."""
        return self.layout.shape


@dataclass(frozen=True)
class Skipped:
    """A weight that a forward applies and that gets no rule, or a module that cannot be looked into."""

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    reason: str
    rule: None = None

    @property
    def elements(self) -> int:
        """The number of elements of the weight."""
        return math.prod(self.weight_shape) if self.weight_shape else 0


KEPT_ATTRIBUTES = ("redirected_weights", "output_errors", "_decided", "unrolled")
"""What a conversion leaves among a module's attributes; `graph.rewrite.restore` takes it away."""

_PARAMETRIZED = re.compile(r"(.*?)\.?parametrizations\.(\w+)\.original\d*")


def feedback_path(weight: str) -> tuple[str, str]:
    """Return the module that carries a weight's feedback state, and the state's name in it.

    It is the module that holds the Parameter, or the layer whose weight is parametrized.
    """
    holder, name = _holder_and_name(weight)
    return holder, FEEDBACK_ATTRIBUTE.format(parameter=name)


def weight_path(weight: str) -> str:
    """Return the name of the weight itself, where it is a parametrization's original."""
    return ".".join(filter(None, _holder_and_name(weight)))


def site_name(weight: str) -> str:
    """Return the name of the layer for `layer.weight`, and the parameter's own for any other."""
    holder, name = _holder_and_name(weight)
    return holder if holder and name == "weight" else f"{holder}.{name}".lstrip(".")


def _holder_and_name(weight: str) -> tuple[str, str]:
    parametrized = _PARAMETRIZED.fullmatch(weight)
    if parametrized:
        return parametrized[1], parametrized[2]
    holder, _, name = weight.rpartition(".")
    return holder, name


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that the user wrote, also after a rewrite."""
    plain: type[nn.Module] = getattr(type(module), "plain_class", type(module))
    return plain
