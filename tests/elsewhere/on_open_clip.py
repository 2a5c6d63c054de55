"""open_clip: two towers, with timm's and with open_clip's own vision transformer, and CoCa."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Case, add

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}


def model(name: str, kind: str, vision: dict[str, Any], text: dict[str, Any], **others: Any) -> None:
    """Put a pair of towers into the catalogue."""

    def factory() -> Case:
        import open_clip

        made = getattr(open_clip, kind)(
            embed_dim=16 if kind == "CoCa" else 8, vision_cfg=vision, text_cfg=text, **others
        )
        size = vision["image_size"]
        return made, (torch.randn(2, 3, size, size), torch.randint(1, 50, (2, 8))), {}

    add("open_clip", name, factory)


model("clip", "CLIP", VISION, TEXT)
model("clip, resnet", "CLIP", {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}, TEXT)
model(
    "clip, attention pooling",
    "CLIP",
    VISION
    | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2, "patch_dropout": 0.5},
    TEXT,
    output_dict=True,
)
model("clip, timm", "CustomTextCLIP", {"timm_model_name": "test_vit", "image_size": 160}, TEXT)
model(
    "coca",
    "CoCa",
    VISION
    | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2, "output_tokens": True},
    TEXT | {"embed_cls": True, "output_tokens": True},
    multimodal_cfg={"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
)
