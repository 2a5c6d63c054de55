"""segmentation_models_pytorch: encoders and decoders with every kind of attention they offer."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Case, add


def model(
    name: str, kind: str, encoder: str = "timm-mobilenetv3_small_minimal_100", size: int = 64, **settings: Any
) -> None:
    """Put a segmentation model into the catalogue."""

    def factory() -> Case:
        import segmentation_models_pytorch as smp

        made = getattr(smp, kind)(encoder, encoder_weights=None, **settings)
        return made, (torch.randn(2, 3, size, size),), {}

    add("segmentation_models_pytorch", name, factory)


SMALL = {"decoder_channels": (16, 16, 16, 16, 16)}
model("unet, scse", "Unet", decoder_attention_type="scse", **SMALL)
model("unet, resnet18", "Unet", "resnet18", **SMALL)
model("unet, with a classifier", "Unet", aux_params={"classes": 3, "dropout": 0.2}, **SMALL)
model("unet++", "UnetPlusPlus", decoder_attention_type="scse", **SMALL)
model("manet", "MAnet", decoder_pab_channels=8, **SMALL)
model("linknet", "Linknet")
model("fpn", "FPN", decoder_pyramid_channels=8, decoder_segmentation_channels=32)
model("pspnet", "PSPNet", psp_out_channels=16)
model("deeplabv3", "DeepLabV3", "resnet18", decoder_channels=8, decoder_aspp_dropout=0.2)
model("deeplabv3+", "DeepLabV3Plus", decoder_channels=8)
model("pan", "PAN", "resnet18", size=128, decoder_channels=8)
model("upernet", "UPerNet", decoder_channels=8)
model("segformer", "Segformer", "mit_b0", decoder_segmentation_channels=8)
