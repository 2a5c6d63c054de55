"""Folders of images of any size: ImageNet, Imagenette, and the user's own; decoded by worker processes."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pfa_convert.data.base import DATASETS, Batches, Count, Data, Normalisation, Shard, batch_starts
from pfa_convert.data.image_files import ImageFiles, decode, list_images
from pfa_convert.errors import UserError

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HINT = "it should have the folders train and val, each with one folder of images per class"


@DATASETS.register("imagefolder")
def image_folder(
    *,
    root: Path,
    validation: int,
    device: torch.device,
    workers: int,
    image_size: Count = 224,
    resize: Count = 256,
    folder: str | None = None,
    skip_unreadable: bool = False,
) -> Data:
    """Return the images in `root/{train,val}/CLASS/`; the images in `val` are the test images.

    For training, a crop of random area and shape is scaled to `image_size` and flipped at random; for
    evaluation the shorter side is scaled to `resize` and the centre cut out. `folder` is looked for in
    `root` first. An image that cannot be read ends the run with its name, unless `skip_unreadable`: then
    it is named in a warning, and the next one takes its place.
    """
    if resize < image_size:
        raise UserError(f"resize: {resize} is less than the {image_size} pixels of image_size")
    base = _find(root, [folder] if folder else [])
    training_files = list_images(base / "train")
    test_files = list_images(base / "val", training_files.classes)
    test = FileSplit(test_files, image_size, resize, device, workers, skip_unreadable)
    common = {
        "num_classes": len(training_files.classes),
        "image_shape": (3, image_size, image_size),
        "folder": base,
    }
    if validation >= len(training_files):
        raise UserError(f"validation: {validation} leaves none of the {len(training_files)} training images")
    if not validation:
        return Data(replace(test, files=training_files), test, None, **common)  # type: ignore[arg-type]
    order = torch.randperm(len(training_files), generator=torch.Generator().manual_seed(0)).tolist()
    train, held_out = (
        replace(test, files=training_files.select(part))
        for part in (order[:-validation], order[-validation:])
    )
    return Data(train, held_out, test, **common)  # type: ignore[arg-type]


@DATASETS.register("imagenet")
def imagenet(
    *,
    root: Path,
    validation: int,
    device: torch.device,
    workers: int,
    image_size: Count = 224,
    resize: Count = 256,
    skip_unreadable: bool = False,
) -> Data:
    """Return ImageNet from `root/imagenet` or `root`; to try a recipe, also from `root/imagenette`."""
    small = not _complete(root / "imagenet") and not _complete(root) and _complete(root / "imagenette")
    return image_folder(
        root=root,
        validation=validation,
        device=device,
        workers=workers,
        image_size=image_size,
        resize=resize,
        folder="imagenette" if small else "imagenet",
        skip_unreadable=skip_unreadable,
    )


@DATASETS.register("imagenette")
def imagenette(
    *,
    root: Path,
    validation: int,
    device: torch.device,
    workers: int,
    image_size: Count = 128,
    resize: Count = 128,
    skip_unreadable: bool = False,
) -> Data:
    """Return Imagenette, ten classes of ImageNet, from `root/imagenette` or `root`."""
    return image_folder(
        root=root,
        validation=validation,
        device=device,
        workers=workers,
        image_size=image_size,
        resize=resize,
        folder="imagenette",
        skip_unreadable=skip_unreadable,
    )


@dataclass(frozen=True)
class FileSplit:
    """Image files that worker processes decode and cut; normalised on the device."""

    files: ImageFiles
    image_size: int
    resize: int
    device: torch.device
    workers: int
    skip_unreadable: bool

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def batches(
        self, batch_size: int, shard: Shard, order_seed: int | None = None, start: int = 0
    ) -> Batches:
        """Yield images `(batch, 3, size, size)` and labels; every image has random numbers of its own."""
        count, shuffled = len(self), order_seed is not None
        generator = torch.Generator().manual_seed(order_seed or 0)
        order = torch.randperm(count, generator=generator) if shuffled else torch.arange(count)
        seeds = torch.randint(2**62, (count,), generator=generator)
        keys = torch.stack([order, seeds], dim=1)
        mine = [
            keys[first : first + batch_size][shard.rank :: shard.world].tolist()
            for first in batch_starts(count, batch_size, shard, shuffled)[start:]
        ]
        loader = DataLoader(
            _Decoder(self.files, _transform(self.image_size, self.resize, shuffled), self.skip_unreadable),
            batch_sampler=[part for part in mine if part],
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=_leave_interrupts_to_the_run,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            generator=generator,  # or it would draw from the run's own random numbers
        )
        return self._to_device(loader)

    def _to_device(self, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        scale = IMAGENET.on(self.device)
        for batch in loader:
            if isinstance(batch, str):
                raise UserError(batch)
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            yield scale(images), labels


class _Decoder(Dataset[Any]):
    """Decodes and cuts the image with the index and the seed that it is asked for."""

    def __init__(self, files: ImageFiles, transform: Any, skip_unreadable: bool) -> None:
        self.files = files
        self.transform = transform
        self.skip_unreadable = skip_unreadable

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | str:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                image, label = self._read(index)
                return self.transform(image), label
            except UserError as error:  # a worker's exception would arrive with its traceback as text
                return str(error)

    def _read(self, index: int) -> tuple[Any, int]:
        """Return the image, or the next one that can be read where that is wanted, and its label."""
        for candidate in (*range(index, len(self.files)), *range(index)):
            try:
                return decode(self.files.paths[candidate]), self.files.labels[candidate]
            except UserError as error:
                if not self.skip_unreadable:
                    raise
                warnings.warn(f"skipped: {error}", stacklevel=1)
        raise UserError("no image can be read", where=self.files.paths[index])


def _leave_interrupts_to_the_run(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the run alone decides when its readers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: list[Any]) -> Any:
    for item in items:
        if isinstance(item, str):
            return item
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _transform(image_size: int, resize: int, augment: bool) -> Any:
    from torchvision.transforms import v2

    if augment:
        cut = [v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip()]
    else:
        cut = [v2.Resize(resize), v2.CenterCrop(image_size)]
    return v2.Compose([*cut, v2.PILToTensor()])


def _complete(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def _find(root: Path, names: list[str]) -> Path:
    candidates = [*(root / name for name in names), root]
    for candidate in candidates:
        if _complete(candidate):
            return candidate
    raise UserError(f"the folder {candidates[0]} is missing or incomplete: {HINT}; pass --data DIR")
