"""What is found in a model: sites, and what is skipped; and the names that both go by."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

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


@dataclass(frozen=True)
class OtherUse:
    """A Parameter of two or more dimensions that is no linear map's weight, and what it is used for."""

    name: str
    weight_shape: tuple[int, ...]
    use: str


CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""What has no forward, unless a subclass gives it one: those that have it call or apply what is in it."""

NOT_REACHED = "no forward that could be followed uses it"


@dataclass
class Discovery:
    """What was found in a model.

    `sites` by weight and owner, first those that the walk did not reach, then the others in the order of
    execution; `skipped` with reasons, by name; `owners` are the paths of the weights that a module's own code
    applies, by the module's name, and `entered` the modules inside whose forwards it is followed into;
    `writers` are the names of the modules whose code changes weights or constants in place; `used` says what
    else is done with a Parameter, by its name.
    """

    sites: dict[tuple[str, str], Site] = field(default_factory=dict)
    skipped: dict[str, Skipped] = field(default_factory=dict)
    owners: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    entered: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    writers: set[str] = field(default_factory=set)
    used: dict[str, str] = field(default_factory=dict)

    def add(self, site: Site) -> None:
        """Add a site, once."""
        self.sites.setdefault((site.weight, site.owner), site)

    def skip(self, name: str, module: nn.Module, shape: tuple[int, ...], reason: str) -> None:
        """Name a weight that gets no rule, with the reason; the first one counts."""
        self.skipped.setdefault(name, Skipped(name, plain_class(module).__name__, shape, reason))

    def applied(self) -> set[str]:
        """Return the names of all weights that are sites."""
        return {weight for weight, _ in self.sites}

    def others(self, model: nn.Module) -> Iterator[OtherUse]:
        """Yield the Parameters of two or more dimensions that are neither sites nor skipped."""
        named = self.applied() | self.skipped.keys()
        inside = tuple(f"{name}." for name in self.skipped)
        for name, parameter in model.named_parameters():
            if is_weight(parameter) and name not in named and not name.startswith(inside):
                yield OtherUse(name, tuple(parameter.shape), self.used.get(name, NOT_REACHED))


KEPT_ATTRIBUTES = ("redirected_weights", "redirected_inside", "output_errors", "_decided", "unrolled")
"""What a conversion leaves among a module's attributes; `graph.rewrite.restore` takes it away."""

_PARAMETRIZED = re.compile(r"(.*?)\.?parametrizations\.(\w+)\.original\d*")


def joined(holder: str, name: str) -> str:
    """Return the path of what `holder` has under a name; the model itself has the path ''."""
    return f"{holder}.{name}" if holder else name


def feedback_path(weight: str) -> tuple[str, str]:
    """Return the module that carries a weight's feedback state, and the state's name in it.

    It is the module that holds the Parameter, or the layer whose weight is parametrized.
    """
    holder, name = _holder_and_name(weight)
    return holder, FEEDBACK_ATTRIBUTE.format(parameter=name)


def weight_path(weight: str) -> str:
    """Return the name of the weight itself, where it is a parametrization's original."""
    return joined(*_holder_and_name(weight))


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


def is_container(module: nn.Module) -> bool:
    """Say whether a module has no forward, and only holds what others call or apply."""
    return isinstance(module, CONTAINERS) and type(module).forward is nn.Module.forward


def of_torch(module: nn.Module) -> bool:
    """Say whether a module's class is one of PyTorch's."""
    return plain_class(module).__module__.startswith("torch.")


def is_weight(tensor: Any) -> bool:
    """Say whether a tensor is a Parameter that a linear map or a convolution could apply."""
    if isinstance(tensor, UninitializedParameter):
        return True
    return isinstance(tensor, nn.Parameter) and tensor.dim() >= 2
