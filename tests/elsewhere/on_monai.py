"""MONAI: networks for medical images, in two and three dimensions."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Case, add


def model(name: str, kind: str, shape: tuple[int, ...], *more: Any, **settings: Any) -> None:
    """Put a network into the catalogue."""

    def factory() -> Case:
        import monai.networks.nets as nets

        return getattr(nets, kind)(**settings), (torch.randn(shape), *more), {}

    add("monai", name, factory)


PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
model(
    "unet", "UNet", (2, 1, 16, 16), channels=(4, 8, 8), strides=(2, 2), num_res_units=2, dropout=0.1, **PLANE
)
model(
    "unet, 3 dimensions",
    "UNet",
    (1, 1, 8, 8, 8),
    spatial_dims=3,
    in_channels=1,
    out_channels=2,
    channels=(4, 8),
    strides=(2,),
)
model("attention unet", "AttentionUnet", (2, 1, 16, 16), channels=(4, 8, 8), strides=(2, 2), **PLANE)
model("basic unet", "BasicUNet", (2, 1, 32, 32), features=(4, 4, 8, 8, 8, 4), **PLANE)
model(
    "dynamic unet",
    "DynUNet",
    (2, 1, 16, 16),
    kernel_size=[3, 3, 3],
    strides=[1, 2, 2],
    upsample_kernel_size=[2, 2],
    filters=[4, 8, 8],
    res_block=True,
    **PLANE,
)
model(
    "segresnet",
    "SegResNet",
    (2, 1, 16, 16),
    init_filters=8,
    blocks_down=(1, 1),
    blocks_up=(1,),
    dropout_prob=0.1,
    **PLANE,
)
model("vnet", "VNet", (2, 1, 32, 32), **PLANE)
model("highresnet", "HighResNet", (1, 1, 16, 16), **PLANE)
model("densenet", "DenseNet", (2, 1, 32, 32), init_features=8, growth_rate=4, block_config=(1, 2), **PLANE)
model("senet", "SEResNet50", (2, 1, 32, 32), spatial_dims=2, in_channels=1, num_classes=2)
model(
    "swin unetr",
    "SwinUNETR",
    (2, 1, 64, 64),
    feature_size=12,
    depths=(1, 1, 1, 1),
    num_heads=(2, 2, 2, 2),
    use_checkpoint=False,
    **PLANE,
)
model(
    "unetr",
    "UNETR",
    (1, 1, 32, 32),
    img_size=32,
    feature_size=4,
    hidden_size=24,
    mlp_dim=32,
    num_heads=2,
    **PLANE,
)
model(
    "vit",
    "ViT",
    (2, 1, 16, 16),
    spatial_dims=2,
    in_channels=1,
    img_size=16,
    patch_size=8,
    hidden_size=16,
    mlp_dim=24,
    num_layers=2,
    num_heads=2,
    classification=True,
)
model("autoencoder", "AutoEncoder", (2, 1, 16, 16), channels=(4, 8), strides=(2, 2), **PLANE)
model(
    "diffusion",
    "DiffusionModelUNet",
    (2, 1, 8, 8),
    torch.tensor([3, 7]),
    num_res_blocks=1,
    channels=(8, 16),
    attention_levels=(False, True),
    num_head_channels=8,
    norm_num_groups=4,
    **PLANE,
)
model(
    "mednext",
    "MedNeXt",
    (1, 1, 32, 32),
    spatial_dims=2,
    init_filters=4,
    in_channels=1,
    out_channels=2,
    blocks_down=(1, 1, 1, 1),
    blocks_up=(1, 1, 1, 1),
    blocks_bottleneck=1,
)
