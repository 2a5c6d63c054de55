"""torchvision's models."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from pfa_convert.models.cached_names import cached_names
from pfa_convert.models.resolve import DEFAULT_INPUT_SIZE, SOURCES, images

if TYPE_CHECKING:
    from torch import Tensor, nn


class TorchvisionModels:
    """Everything in torchvision's own registry: classification, detection, segmentation, video, flow."""

    priority = 0

    def names(self) -> Sequence[str]:
        """Return the names in torchvision's registry."""
        return cached_names("torchvision", _names)

    def build(self, name: str, num_classes: int | None, **options: Any) -> nn.Module:
        """Return the model with random weights, its backbone's included."""
        from torchvision.models import get_model, get_model_builder

        if "weights_backbone" in signature(get_model_builder(name)).parameters:
            options.setdefault("weights_backbone", None)
        if num_classes is not None:
            options["num_classes"] = num_classes
        if name in ("googlenet", "inception_v3"):
            options.setdefault("init_weights", True)
        return get_model(name, weights=None, **options)

    def input_size(self, name: str) -> tuple[int, ...]:
        """Return the size that the model was designed for."""
        if name.endswith("inception_v3"):
            return (3, 299, 299)
        if name in ("r3d_18", "mc3_18", "r2plus1d_18"):
            return (3, 16, 112, 112)
        if name.startswith(("mvit", "swin3d", "s3d")):
            return (3, 16, 224, 224)
        return DEFAULT_INPUT_SIZE

    def example(self, name: str, size: int | None) -> tuple[Any, ...]:
        """Return a batch of images; with targets for a detector, and two batches for optical flow."""
        from torchvision.models import get_model_builder

        family = get_model_builder(name).__module__
        batch = images(self.input_size(name), size)
        if ".detection." in family:
            return list(batch), [_target(batch.shape[-1]) for _ in batch]
        if ".optical_flow." in family:
            return batch, batch.flip(0)
        return (batch,)


def _target(size: int) -> dict[str, Tensor]:
    """Return one object in the middle of an image: its box, mask and 17 keypoints."""
    import torch

    low, high = 0.25 * size, 0.75 * size
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, int(low) : int(high), int(low) : int(high)] = 1
    return {
        "boxes": torch.tensor([[low, low, high, high]]),
        "labels": torch.tensor([1]),
        "masks": mask,
        "keypoints": torch.tensor([[[size / 2, size / 2, 1.0]] * 17]),
    }


def _names() -> Sequence[str]:
    from torchvision.models import list_models

    return list_models()


SOURCES.register("torchvision")(TorchvisionModels())
