"""From a name to the model: `resnet50`, `timm/resnet50`, `paper/resnet20`, `package.module:factory`."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pfa_convert.errors import UserError, machine_failure
from pfa_convert.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_INPUT_SIZE = (3, 224, 224)


class ModelSource(Protocol):
    """Where models come from. `priority` orders the sources for a bare name; None leaves them out."""

    @property
    def priority(self) -> int | None:
        """The place in the search for a bare name."""

    def names(self) -> Sequence[str]:
        """Return every name that the source knows."""

    def build(self, name: str, num_classes: int | None, **options: Any) -> nn.Module:
        """Return the model with random weights; nothing is downloaded."""

    def input_size(self, name: str) -> tuple[int, ...]:
        """Return the shape of one input, channels first."""

    def example(self, name: str, size: int | None) -> tuple[Any, ...]:
        """Return the arguments of one call in training: two inputs, of `size` pixels if it is given."""


SOURCES: Registry[ModelSource] = Registry("model source", "pfa_convert.models")


@dataclass(frozen=True)
class ResolvedModel:
    """A model's source and its name there."""

    source: str
    name: str

    def __str__(self) -> str:
        """Return `source/name`."""
        return f"{self.source}/{self.name}"

    @property
    def input_size(self) -> tuple[int, ...]:
        """The shape of one input, channels first."""
        return SOURCES[self.source].input_size(self.name)


def resolve(name: str) -> ResolvedModel:
    """Return source and name of a model.

    A bare name is looked for in torchvision, then in timm, then among the paper's models.

    Raises:
        UserError: naming the nearest valid names.
    """
    if "hf-hub:" in name or "hf_hub:" in name:
        raise UserError(
            f"{name!r} is a download, and nothing is downloaded: name the architecture, such as "
            "timm/resnet18, and load its checkpoint with load_state_dict"
        )
    if ":" in name:
        return ResolvedModel("factory", name)
    source, slash, rest = name.partition("/")
    if slash and source in SOURCES and rest in SOURCES[source].names():
        return ResolvedModel(source, rest)
    if not slash:
        for candidate in _by_priority():
            if name in SOURCES[candidate].names():
                return ResolvedModel(candidate, name)
    choices = available() if slash else [model.partition("/")[2] for model in available()]
    raise UserError(f"unknown model {name!r}", given=name, choices=choices)


def build(name: str, num_classes: int | None = None, **options: Any) -> nn.Module:
    """Return the plain model of this name with random weights.

    Args:
        name: see `resolve`.
        num_classes: outputs of the classifier; None for the model's own default.
        options: further keyword arguments for the model's constructor.

    Raises:
        UserError: for an unknown name, or options that the model does not take.
    """
    resolved = resolve(name)
    try:
        return SOURCES[resolved.source].build(resolved.name, num_classes, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        if not options or machine_failure(error):
            raise
        raise UserError(f"{error}", where=f"model {resolved}") from error


def example(name: str, size: int | None = None) -> tuple[Any, ...]:
    """Return the arguments of one call of this model: two random inputs, the same each time.

    Args:
        name: see `resolve`.
        size: height and width in pixels; the model's own by default.
    """
    resolved = resolve(name)
    return SOURCES[resolved.source].example(resolved.name, size)


def images(shape: Sequence[int], size: int | None) -> Tensor:
    """Return a batch of two random images between 0 and 1, the last two dimensions of the size given."""
    import torch

    spatial = shape if size is None else (*shape[:-2], size, size)
    return torch.rand(2, *spatial, generator=torch.Generator().manual_seed(0))


def available(pattern: str | None = None) -> list[str]:
    """Return the models of every source as `source/name`, those that match a glob or contain a text."""
    names = [f"{source}/{name}" for source in _by_priority() for name in SOURCES[source].names()]
    if pattern is None:
        return names
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [name for name in names if fnmatch.fnmatch(name, glob) or fnmatch.fnmatch(name, f"*/{glob}")]


def _by_priority() -> list[str]:
    ordered = [(SOURCES[source].priority, source) for source in SOURCES]
    return [source for priority, source in sorted((p, s) for p, s in ordered if p is not None)]
