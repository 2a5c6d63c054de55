"""scikit-learn's bundled 8 x 8 digits (1,797 images): the data set that needs no file and no network."""

from __future__ import annotations

import torch

from pfa_convert.data.base import DATASETS, Data, DeviceSplit, Normalisation, hold_out

TEST_IMAGES = 360


@DATASETS.register("digits")
def digits(*, validation: int, device: torch.device) -> Data:
    """Return the digits, one fifth of them (the same for every seed) as the test set."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    images = torch.from_numpy(bundled.images / 16 * 255).round().to(torch.uint8).unsqueeze(1).to(device)
    labels = torch.from_numpy(bundled.target).long().to(device)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(device)
    images, labels = images[order], labels[order]
    normalisation = Normalisation((0.305,), (0.376,))
    train = DeviceSplit(images[TEST_IMAGES:], labels[TEST_IMAGES:], normalisation)
    test = DeviceSplit(images[:TEST_IMAGES], labels[:TEST_IMAGES], normalisation)
    return hold_out(train, test, validation, num_classes=10)
