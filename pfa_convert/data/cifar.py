"""CIFAR-10 and CIFAR-100, from torchvision's files or from a folder of images per class."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pfa_convert.data.base import DATASETS, Data, DeviceSplit, hold_out, require_folder
from pfa_convert.errors import UserError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@DATASETS.register("cifar10")
def cifar10(*, root: Path, validation: int, device: torch.device, **_: Any) -> Data:
    """Return CIFAR-10 from `root/cifar10/{train,test}/CLASS/` or `root/cifar-10-batches-py`."""
    if (root / "cifar10").is_dir():
        return _data(
            [_image_folder(root / "cifar10", part) for part in ("train", "test")], 10, validation, device
        )
    return _torchvision("CIFAR10", "cifar-10-batches-py", root, 10, validation, device)


@DATASETS.register("cifar100")
def cifar100(*, root: Path, validation: int, device: torch.device, **_: Any) -> Data:
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
    return _data(parts, classes, validation, device)


def _data(parts: list[tuple[Tensor, Tensor]], classes: int, validation: int, device: torch.device) -> Data:
    (train_images, train_labels), (test_images, test_labels) = parts
    train = DeviceSplit(
        train_images.contiguous().to(device), train_labels.to(device), MEAN, STD, flip=True, padding=4
    )
    test = DeviceSplit(test_images.contiguous().to(device), test_labels.to(device), MEAN, STD)
    return hold_out(train, test, validation, num_classes=classes)


def _image_folder(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of one part; decoded once, then kept beside the folder as safetensors."""
    cache = folder / f"{part}.safetensors"
    if cache.is_file():
        kept = load_file(cache)
        return kept["images"], kept["labels"]
    require_folder(folder / part, "cifar10", "it should hold one folder of images per class")
    classes = sorted(entry.name for entry in (folder / part).iterdir() if entry.is_dir())
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / part / name).iterdir())
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = torch.stack(list(pool.map(_decode, [path for path, _ in files])))
    labels = torch.tensor([label for _, label in files])
    partial = cache.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({"images": images, "labels": labels}, partial)
        partial.replace(cache)
    except OSError:
        partial.unlink(missing_ok=True)
    return images, labels


def _decode(path: Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot be read as an image: {error}", where=str(path)) from error
