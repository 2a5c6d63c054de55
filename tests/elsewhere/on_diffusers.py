"""Hugging Face diffusers: denoising U-Nets and transformers, and autoencoders."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Case, add

BLOCKS = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
CONDITIONED = BLOCKS | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "attention_head_dim": 4,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
}
TIME = torch.tensor([3, 7])


def model(name: str, kind: str, settings: dict[str, Any], inputs: Any) -> None:
    """Put a model into the catalogue."""

    def factory() -> Case:
        import diffusers

        return getattr(diffusers, kind)(**settings), (), inputs()

    add("diffusers", name, factory)


def noisy(channels: int = 4, size: int = 8, **others: Any) -> Any:
    """Noisy samples at two time steps."""
    return lambda: {"sample": torch.randn(2, channels, size, size), "timestep": TIME, **others}


TEXT = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
model(
    "unet-2d",
    "UNet2DModel",
    BLOCKS
    | {
        "in_channels": 3,
        "out_channels": 3,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    noisy(3),
)
model("unet-2d-condition", "UNet2DConditionModel", CONDITIONED, noisy(encoder_hidden_states=TEXT))
model(
    "unet-2d-condition, linear projection",
    "UNet2DConditionModel",
    CONDITIONED
    | {
        "use_linear_projection": True,
        "resnet_time_scale_shift": "scale_shift",
        "class_embed_type": "timestep",
    },
    noisy(encoder_hidden_states=TEXT, class_labels=torch.tensor([1, 2])),
)
model(
    "controlnet",
    "ControlNetModel",
    {k: v for k, v in CONDITIONED.items() if k not in ("up_block_types", "sample_size")}
    | {"conditioning_embedding_out_channels": (4, 8)},
    noisy(
        encoder_hidden_states=TEXT,
        controlnet_cond=torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
    ),
)
model(
    "unet-1d",
    "UNet1DModel",
    {
        "sample_size": 16,
        "block_out_channels": (32, 32),
        "in_channels": 2,
        "out_channels": 2,
        "extra_in_channels": 64,
        "down_block_types": ("DownBlock1DNoSkip", "AttnDownBlock1D"),
        "up_block_types": ("AttnUpBlock1D", "UpBlock1DNoSkip"),
    },
    lambda: {"sample": torch.randn(2, 2, 16), "timestep": TIME},
)
model(
    "dit",
    "DiTTransformer2DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "sample_size": 8,
        "num_embeds_ada_norm": 10,
        "norm_num_groups": 4,
    },
    lambda: {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": TIME,
        "class_labels": torch.tensor([1, 2]),
    },
)
model(
    "pixart",
    "PixArtTransformer2DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 1,
        "sample_size": 8,
        "cross_attention_dim": 16,
        "caption_channels": 12,
        "use_additional_conditions": False,
    },
    lambda: {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": TIME,
        "encoder_hidden_states": TEXT,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    },
)
model(
    "sd3",
    "SD3Transformer2DModel",
    {
        "sample_size": 8,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 6,
        "pos_embed_max_size": 8,
        "in_channels": 4,
        "out_channels": 4,
    },
    lambda: {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": TIME,
        "encoder_hidden_states": TEXT,
        "pooled_projections": torch.randn(2, 6),
    },
)
model(
    "flux",
    "FluxTransformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 6,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": False,
    },
    lambda: {
        "hidden_states": torch.randn(2, 16, 4),
        "encoder_hidden_states": TEXT,
        "pooled_projections": torch.randn(2, 6),
        "timestep": TIME / 10,
        "img_ids": torch.rand(16, 3),
        "txt_ids": torch.zeros(5, 3),
    },
)
model(
    "vae",
    "AutoencoderKL",
    {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "latent_channels": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    lambda: {"sample": torch.randn(2, 3, 16, 16), "sample_posterior": True},
)
model(
    "vae, tiny",
    "AutoencoderTiny",
    {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "upsampling_scaling_factor": 2,
    },
    lambda: {"sample": torch.rand(2, 3, 16, 16)},
)
model(
    "vq",
    "VQModel",
    {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "latent_channels": 3,
        "num_vq_embeddings": 8,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    lambda: {"sample": torch.randn(2, 3, 16, 16)},
)
model(
    "prior",
    "PriorTransformer",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "embedding_dim": 12,
        "num_embeddings": 5,
        "additional_embeddings": 4,
    },
    lambda: {
        "hidden_states": torch.randn(2, 12),
        "timestep": TIME,
        "proj_embedding": torch.randn(2, 12),
        "encoder_hidden_states": TEXT,
    },
)
