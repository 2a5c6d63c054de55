"""A data set of one's own: a function that returns images and labels as uint8 and int64 tensors.

pfa-convert train digits-mlp-pfa --set data.dataset=custom_data:stripes --set model.num_classes=2
"""

import torch

from pfa_convert import load_recipe, train
from pfa_convert.data.base import Data, DeviceSplit, Normalisation, hold_out


def stripes(*, validation: int, device: torch.device, count: int = 2000, noise: float = 40.0) -> Data:
    """Horizontal or vertical stripes; `count` and `noise` are options that a recipe can set."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (count,), generator=generator)
    bars = 200.0 * (torch.arange(8) % 2).view(1, 8, 1).expand(count, 8, 8)
    images = torch.where(labels.view(-1, 1, 1) == 0, bars, bars.transpose(1, 2))
    images = images + noise * torch.randn(images.shape, generator=generator)
    images = images.clamp(0, 255).to(torch.uint8).unsqueeze(1).to(device)
    whole, labels = Normalisation((0.4,), (0.4,)), labels.to(device)
    half = count // 2
    splits = (
        DeviceSplit(images[:half], labels[:half], whole),
        DeviceSplit(images[half:], labels[half:], whole),
    )
    return hold_out(*splits, validation, num_classes=2)


if __name__ == "__main__":
    changes = ["data.dataset=custom_data:stripes", "model.num_classes=2", "train.epochs=3"]
    result = train(load_recipe("digits-mlp-pfa", changes), overwrite=True)
    print(f"accuracy {result.final_top1 / 100:.3f}")
