"""MNIST and Fashion-MNIST, from torchvision's files."""

from __future__ import annotations

from pathlib import Path

import torch

from pfa_convert.data.base import DATASETS, Data, DeviceSplit, Normalisation, hold_out, require_folder
from pfa_convert.errors import UserError


@DATASETS.register("mnist")
def mnist(*, root: Path, validation: int, device: torch.device) -> Data:
    """Return MNIST from `root/MNIST/raw`, normalised by (0.1307, 0.3081)."""
    return _load("MNIST", root, validation, device, 0.1307, 0.3081)


@DATASETS.register("fashion_mnist")
def fashion_mnist(*, root: Path, validation: int, device: torch.device) -> Data:
    """Return Fashion-MNIST from `root/FashionMNIST/raw`, normalised by (0.2860, 0.3530)."""
    return _load("FashionMNIST", root, validation, device, 0.2860, 0.3530)


def _load(name: str, root: Path, validation: int, device: torch.device, mean: float, std: float) -> Data:
    import torchvision

    hint = f"put the files where torchvision.datasets.{name} puts them, and pass --data {root}"
    require_folder(root / name / "raw", name, hint)
    splits = []
    for train in (True, False):
        try:
            found = getattr(torchvision.datasets, name)(root, train=train, download=False)
        except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
            problem = str(error) or "the files are damaged"  # torchvision checks them with bare assertions
            raise UserError(problem, where=f"data set {name!r} in {root}") from error
        images = found.data.unsqueeze(1).to(device)
        splits.append(DeviceSplit(images, found.targets.to(device), Normalisation((mean,), (std,))))
    return hold_out(splits[0], splits[1], validation, num_classes=10, folder=root / name)
