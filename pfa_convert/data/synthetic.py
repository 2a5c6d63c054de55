"""Random images around a prototype per class: for trying a model or measuring speed without data."""

from __future__ import annotations

import torch

from pfa_convert.data.base import DATASETS, Count, Data, DeviceSplit, Normalisation, hold_out
from pfa_convert.errors import UserError


@DATASETS.register("synthetic")
def synthetic(
    *,
    validation: int,
    device: torch.device,
    images: Count = 1024,
    shape: tuple[Count, ...] = (3, 32, 32),
    num_classes: Count = 10,
) -> Data:
    """Return `images` training and a quarter as many test images of the given channels, height and width."""
    if len(shape) != 3:
        raise UserError(f"shape: {list(shape)} is not channels, height and width", where="data.options")
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randint(256, (num_classes, *shape), generator=generator)
    normalisation = Normalisation((0.5,) * shape[0], (0.25,) * shape[0])
    splits = []
    for count in (images, max(1, images // 4)):
        labels = torch.randint(num_classes, (count,), generator=generator)
        noise = torch.randint(256, (count, *shape), generator=generator)
        mixed = ((prototypes[labels] + 3 * noise) // 4).to(torch.uint8)
        splits.append(DeviceSplit(mixed.to(device), labels.to(device), normalisation))
    return hold_out(splits[0], splits[1], validation, num_classes=num_classes)
