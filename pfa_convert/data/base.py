"""Images and labels for the trainer: small sets live on the device, and are augmented there in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from pfa_convert.errors import UserError
from pfa_convert.registry import Registry

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Shard:
    """Which part of every batch this process takes: `rank` of `world`."""

    rank: int = 0
    world: int = 1


class Split(Protocol):
    """A part of a data set: training, validation or test images."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(
        self, batch_size: int, shard: Shard, order_seed: int | None = None, start: int = 0
    ) -> Batches:
        """Yield images and labels, this process's shard of each batch, from the batch `start` on.

        With an `order_seed`: shuffled and augmented, a pure function of that seed. Without: in order, as
        they are; the last shard may then be empty.
        """


@dataclass(frozen=True)
class Data:
    """A data set ready for training; `evaluation` is the split that a model is evaluated on."""

    train: Split
    evaluation: Split
    test: Split | None
    num_classes: int
    image_shape: tuple[int, ...]
    folder: Path | None = None
    """The folder that was read; None for sets that need no file."""

    @property
    def evaluation_name(self) -> str:
        """`validation` where images were held out, `test` otherwise."""
        return "test" if self.test is None else "validation"


Loader = Callable[..., Data]
DATASETS: Registry[Loader] = Registry("data set", "pfa_convert.data")

Count = Annotated[int, Field(ge=1, lt=2**31)]
"""An option that is a whole number from 1 on."""

COMMON = ("root", "validation", "device", "workers")
"""What every loader may take; the rest of its keyword arguments are the options of its data set."""


def batch_starts(count: int, batch_size: int, shard: Shard, training: bool) -> range:
    """Return where each batch begins among `count` images; `batch_size` is that of all processes together.

    The last, incomplete batch counts, unless in training it is too small for every process to have a part.
    """
    rest = count % batch_size
    return range(0, count - rest if training and rest < shard.world else count, batch_size)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, of values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return the function from uint8 images `(N, C, H, W)` to normalised ones of the default dtype."""
        dtype = torch.get_default_dtype()
        mean = torch.tensor(self.mean, device=device, dtype=dtype).view(1, -1, 1, 1) * 255
        scale = 1 / (torch.tensor(self.std, device=device, dtype=dtype).view(1, -1, 1, 1) * 255)
        return lambda images: images.to(dtype).sub_(mean).mul_(scale)


@dataclass(frozen=True)
class DeviceSplit:
    """Images `(N, C, H, W)` uint8 and labels `(N,)` on a device.

    Batches are normalised; in training they are flipped (`flip`) and shifted by up to `padding` pixels
    before that, black coming in.
    """

    images: Tensor
    labels: Tensor
    normalisation: Normalisation
    flip: bool = False
    padding: int = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def batches(
        self, batch_size: int, shard: Shard, order_seed: int | None = None, start: int = 0
    ) -> Batches:
        """Yield normalised images and int64 labels, this process's shard of each batch."""
        count, shuffled = len(self), order_seed is not None
        normalise = self.normalisation.on(self.images.device)
        generator = torch.Generator().manual_seed(order_seed or 0)
        order = torch.randperm(count, generator=generator) if shuffled else torch.arange(count)
        order = order.to(self.images.device)
        augmentation = self._draw(generator) if shuffled else None
        for first in batch_starts(count, batch_size, shard, shuffled)[start:]:
            mine = slice(first + shard.rank, min(first + batch_size, count), shard.world)
            images = self.images[order[mine]]
            if augmentation is not None:
                images = self._augment(images, augmentation[mine])
            yield normalise(images), self.labels[order[mine]]

    def _draw(self, generator: torch.Generator) -> Tensor | None:
        """Return `(N, 3)`: flip, and the shift down and to the right, for each image of an epoch."""
        if not self.flip and not self.padding:
            return None
        flips = torch.randint(2, (len(self), 1), generator=generator)
        shifts = torch.randint(2 * self.padding + 1, (len(self), 2), generator=generator)
        return torch.cat([flips, shifts], dim=1).to(self.images.device)

    def _augment(self, images: Tensor, drawn: Tensor) -> Tensor:
        flips, shifts = drawn[:, 0], drawn[:, 1:]
        if self.flip:
            images = torch.where(flips.bool().view(-1, 1, 1, 1), images.flip(3), images)
        if self.padding:
            height, width = images.shape[2:]
            padded = functional.pad(images, (self.padding,) * 4)
            rows = shifts[:, 0, None] + torch.arange(height, device=images.device)
            columns = shifts[:, 1, None] + torch.arange(width, device=images.device)
            which = torch.arange(len(images), device=images.device)
            # Advanced indices around a slice come first: (batch, height, width, channels).
            images = padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]]
            images = images.permute(0, 3, 1, 2).contiguous()
        return images


def hold_out(
    train: DeviceSplit,
    test: DeviceSplit,
    validation: int,
    *,
    num_classes: int,
    folder: Path | None = None,
    mixed: bool = False,
) -> Data:
    """Return the Data of a set in memory, with `validation` training images held out, the same in all runs.

    They are the last ones of a random order; where the files are `mixed` already, the last ones in them.
    """
    if validation >= len(train):
        raise UserError(f"validation: {validation} leaves none of the {len(train)} training images")
    shape = tuple(train.images.shape[1:])
    if not validation:
        return Data(train, test, None, num_classes, shape, folder)
    random = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    order = (torch.arange(len(train)) if mixed else random).to(train.images.device)
    kept, held = order[:-validation], order[-validation:]
    validating = replace(train, images=train.images[held], labels=train.labels[held], flip=False, padding=0)
    training = replace(train, images=train.images[kept], labels=train.labels[kept])
    return Data(training, validating, test, num_classes, shape, folder)


def with_fewer(data: Data, images: int) -> Data:
    """Return the Data of a set in memory with so many training images, the same in all runs."""
    train = data.train
    assert isinstance(train, DeviceSplit)
    if images > len(train):
        raise UserError(f"images: {images} are more than the {len(train)} training images")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    kept = order[:images].to(train.images.device)
    return replace(data, train=replace(train, images=train.images[kept], labels=train.labels[kept]))


def require_folder(folder: Path, dataset: str, hint: str) -> Path:
    """Return the folder; raises UserError that names it and how to get the data if it is missing."""
    if not folder.is_dir():
        raise UserError(f"the folder {folder} is missing: {hint}", where=f"data set {dataset!r}")
    return folder
