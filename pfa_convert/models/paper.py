"""The paper's own models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pfa_convert.models.resolve import SOURCES, images

if TYPE_CHECKING:
    from torch import nn

DEPTHS = (20, 32, 44, 56)


class PaperModels:
    """`mlp` and `resnet20`, `resnet32`, `resnet44`, `resnet56`."""

    priority = 2

    def names(self) -> Sequence[str]:
        """Return the names of the paper's models."""
        return ("mlp", *(f"resnet{depth}" for depth in DEPTHS))

    def build(self, name: str, num_classes: int | None, **options: Any) -> nn.Module:
        """Return the model with 10 classes unless told otherwise."""
        from pfa_convert.models.networks.paper import CifarResNet, mlp

        classes = 10 if num_classes is None else num_classes
        if name == "mlp":
            return mlp(num_classes=classes, **options)
        return CifarResNet(int(name.removeprefix("resnet")), num_classes=classes, **options)

    def input_size(self, name: str) -> tuple[int, ...]:
        """Return the size of an MNIST or a CIFAR image."""
        return (1, 28, 28) if name == "mlp" else (3, 32, 32)

    def example(self, name: str, size: int | None) -> tuple[Any, ...]:
        """Return a batch of images."""
        return (images(self.input_size(name), size),)


SOURCES.register("paper")(PaperModels())
