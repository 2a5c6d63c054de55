"""timm's models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pfa_convert.models.cached_names import cached_names
from pfa_convert.models.resolve import DEFAULT_INPUT_SIZE, SOURCES, images

if TYPE_CHECKING:
    from torch import nn


class TimmModels:
    """Everything in timm's registry, without pretrained weights."""

    priority = 1

    def names(self) -> Sequence[str]:
        """Return the names in timm's registry."""
        return cached_names("timm", _names)

    def build(self, name: str, num_classes: int | None, **options: Any) -> nn.Module:
        """Return the model with random weights."""
        import timm

        if num_classes is not None:
            options["num_classes"] = num_classes
        return timm.create_model(name, pretrained=False, **options)

    def input_size(self, name: str) -> tuple[int, ...]:
        """Return the input size of the model's default configuration."""
        import timm

        config = timm.get_pretrained_cfg(name)
        return tuple(config.input_size) if config is not None else DEFAULT_INPUT_SIZE

    def example(self, name: str, size: int | None) -> tuple[Any, ...]:
        """Return a batch of images."""
        return (images(self.input_size(name), size),)


def _names() -> Sequence[str]:
    import timm

    return timm.list_models()


SOURCES.register("timm")(TimmModels())
