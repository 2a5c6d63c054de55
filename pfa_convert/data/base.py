"""Images and labels for the trainer: small sets live on the device, and are augmented there in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pfa_convert.errors import UserError
from pfa_convert.registry import Registry

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process takes: `rank` of `world`."""

    rank: int = 0
    world: int = 1


class Split(Protocol):
    """A part of a data set: training, validation or test images."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(self, batch_size: int, share: Share, order_seed: int | None = None) -> Batches:
        """Yield images and labels.

        With an `order_seed`: shuffled and augmented, a pure function of that seed, the last
        incomplete batch of `batch_size` (over all processes) kept. Without: in order, as they are.
        """


@dataclass(frozen=True)
class Data:
    """A data set ready for training; `evaluation` is the split that a model is judged by."""

    train: Split
    evaluation: Split
    test: Split | None
    num_classes: int
    image_shape: tuple[int, ...]

    @property
    def evaluation_name(self) -> str:
        """`validation` where images were held out, `test` otherwise."""
        return "test" if self.test is None else "validation"


Loader = Callable[..., Data]
DATASETS: Registry[Loader] = Registry("data set", "pfa_convert.data")


def load_data(
    dataset: str, root: Path, *, validation: int, device: torch.device, workers: int, options: dict[str, Any]
) -> Data:
    """Return the data set of this name.

    Args:
        dataset: a name in DATASETS.
        root: the folder with the files; nothing is downloaded.
        validation: how many training images to hold out; 0 judges by the test images.
        device: where small sets are kept.
        workers: processes that decode large sets.
        options: the data set's own options.

    Raises:
        UserError: for an unknown name or option, or a folder that is not there.
    """
    loader = DATASETS[dataset]
    try:
        return loader(root=root, validation=validation, device=device, workers=workers, **options)
    except TypeError as error:
        if not options:
            raise
        raise UserError(str(error), where=f"data set {dataset!r}") from error


@dataclass(frozen=True)
class DeviceSplit:
    """Images `(N, C, H, W)` uint8 and labels `(N,)` on a device.

    Batches are scaled to [0, 1] and normalised by `mean` and `std` per channel; in training they are
    flipped (`flip`) and shifted by up to `padding` pixels, zeros coming in.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    padding: int = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def batches(self, batch_size: int, share: Share, order_seed: int | None = None) -> Batches:
        """Yield normalised float32 images and int64 labels, this process's share of each batch."""
        device = self.images.device
        mean = torch.tensor(self.mean, device=device).view(1, -1, 1, 1) * 255
        scale = 1 / (torch.tensor(self.std, device=device).view(1, -1, 1, 1) * 255)
        shuffled = order_seed is not None
        generator = torch.Generator().manual_seed(order_seed or 0)
        count = len(self)
        order = torch.randperm(count, generator=generator) if shuffled else torch.arange(count)
        order = order.to(device)
        for index in range(math.ceil(count / batch_size)):
            whole = order[index * batch_size : (index + 1) * batch_size]
            augmentation = self._draw(len(whole), generator) if shuffled else None
            mine = slice(share.rank, None, share.world)
            images = (self.images[whole[mine]].float() - mean) * scale
            if augmentation is not None:
                images = self._augment(images, augmentation[mine])
            yield images, self.labels[whole[mine]]

    def _draw(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Return `(count, 3)`: flip, and the shift down and to the right, for each image."""
        if not self.flip and not self.padding:
            return None
        flips = torch.randint(2, (count, 1), generator=generator)
        shifts = torch.randint(2 * self.padding + 1, (count, 2), generator=generator)
        return torch.cat([flips, shifts], dim=1).to(self.images.device, non_blocking=True)

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


def hold_out(train: DeviceSplit, test: DeviceSplit, validation: int, **shape: Any) -> Data:
    """Return the Data of a set in memory, with the last `validation` training images held out."""
    if validation >= len(train):
        raise UserError(f"validation: {validation} leaves none of the {len(train)} training images")
    common = {"num_classes": shape["num_classes"], "image_shape": tuple(train.images.shape[1:])}
    if not validation:
        return Data(train, test, None, **common)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).to(train.images.device)
    kept, held = order[:-validation], order[-validation:]
    validating = replace(train, images=train.images[held], labels=train.labels[held], flip=False, padding=0)
    training = replace(train, images=train.images[kept], labels=train.labels[kept])
    return Data(training, validating, test, **common)


def require_folder(folder: Path, dataset: str, hint: str) -> Path:
    """Return the folder; raises UserError that names it and how to get the data if it is missing."""
    if not folder.is_dir():
        raise UserError(f"the folder {folder} is missing: {hint}", where=f"data set {dataset!r}")
    return folder
