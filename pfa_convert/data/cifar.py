"""CIFAR-10 and CIFAR-100, from torchvision's files or from a folder of images per class."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pfa_convert.atomic import appearing_whole
from pfa_convert.data.base import (
    DATASETS,
    Count,
    Data,
    DeviceSplit,
    Normalisation,
    hold_out,
    require_folder,
    with_fewer,
)
from pfa_convert.data.image_files import ImageFiles, decode, list_images
from pfa_convert.errors import UserError

NORMALISATION = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@DATASETS.register("cifar10")
def cifar10(*, root: Path, validation: int, device: torch.device, images: Count | None = None) -> Data:
    """Return CIFAR-10 from `root/cifar10/{train,test}/CLASS/` or `root/cifar-10-batches-py`.

    Training is on so many `images` of those that are not held out, always the same ones; all by default.
    """
    if (root / "cifar10").is_dir():
        parts = _image_folder(root / "cifar10")
        data = _data(parts, 10, validation, device, folder=root / "cifar10")
    else:
        data = _torchvision("CIFAR10", "cifar-10-batches-py", root, 10, validation, device)
    return data if images is None else with_fewer(data, images)


@DATASETS.register("cifar100")
def cifar100(*, root: Path, validation: int, device: torch.device) -> Data:
    """Return CIFAR-100 from `root/cifar-100-python`."""
    return _torchvision("CIFAR100", "cifar-100-python", root, 100, validation, device)


def _torchvision(
    name: str, folder: str, root: Path, classes: int, validation: int, device: torch.device
) -> Data:
    import torchvision

    hint = f"unpack {name} there, or images into {root}/cifar10/train and test, and pass --data {root}"
    require_folder(root / folder, name.lower(), hint)
    parts = []
    for train in (True, False):
        try:
            found = getattr(torchvision.datasets, name)(root, train=train, download=False)
        except (RuntimeError, OSError) as error:
            raise UserError(f"{error}", where=f"data set {name!r} in {root}") from error
        parts.append((torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets)))
    # The files' own order is random, and the last 5,000 are the paper's validation images.
    return _data(parts, classes, validation, device, folder=root / folder, mixed=True)


def _data(
    parts: list[tuple[Tensor, Tensor]], classes: int, validation: int, device: torch.device, **held_out: Any
) -> Data:
    train, test = (
        DeviceSplit(images.contiguous().to(device), labels.to(device), NORMALISATION)
        for images, labels in parts
    )
    train = replace(train, flip=True, padding=4)
    return hold_out(train, test, validation, num_classes=classes, **held_out)


def _image_folder(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Return images and labels of training and test images."""
    hint = "it should have the folders train and test, each with one folder of images per class"
    for part in ("train", "test"):
        require_folder(folder / part, "cifar10", hint)
    train = list_images(folder / "train")
    if len(train.classes) != 10:
        raise UserError(f"has {len(train.classes)} classes, CIFAR-10 has 10", where=str(folder / "train"))
    test = list_images(folder / "test", train.classes)
    return [
        _decoded(folder / f"{part}.safetensors", files) for part, files in (("train", train), ("test", test))
    ]


def _decoded(cache: Path, files: ImageFiles) -> tuple[Tensor, Tensor]:
    """Return the images `(N, 3, 32, 32)` uint8 and labels; decoded once, then kept in the cache.

    The cache is for this list of files alone; where it cannot be written, every run decodes.
    """
    names = "\n".join(os.path.relpath(path, cache.parent) for path in files.paths)
    listed = hashlib.sha256(names.encode()).hexdigest()
    try:
        with safe_open(cache, framework="pt") as kept:
            if kept.metadata() == {"files": listed}:
                return kept.get_tensor("images"), kept.get_tensor("labels")
    except (SafetensorError, OSError):
        pass
    from torchvision.transforms.functional import pil_to_tensor

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(pool.map(lambda path: pil_to_tensor(decode(path)), files.paths))
    for path, image in zip(files.paths, decoded, strict=True):
        if image.shape != (3, 32, 32):
            raise UserError(f"has the size {image.shape[2]} x {image.shape[1]}, not 32 x 32", where=path)
    images, labels = torch.stack(decoded), torch.tensor(files.labels)
    with suppress(SafetensorError, OSError), appearing_whole(cache) as partial:
        save_file({"images": images, "labels": labels}, partial, metadata={"files": listed})
    return images, labels
