"""Hugging Face transformers: each kind of architecture once, in one to three small layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from catalogue import Case, add

Inputs = Callable[[Any], dict[str, Any]]

TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
DECODER = TEXT | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "pad_token_id": 0}
EXPERTS = DECODER | {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
SEQ2SEQ = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
}
VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SPEECH = TEXT | {
    "conv_dim": (8, 8),
    "conv_kernel": (5, 3),
    "conv_stride": (4, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
DETECTOR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_queries": 5,
}


def ids(_: Any, length: int = 8) -> dict[str, Any]:
    """Token ids, two sequences, the second padded at its end."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, -2:] = 0
    return {"input_ids": torch.randint(1, 50, (2, length)), "attention_mask": mask}


def pairs(_: Any) -> dict[str, Any]:
    """Token ids for an encoder and a decoder."""
    return {"input_ids": torch.randint(1, 50, (2, 8)), "decoder_input_ids": torch.randint(1, 50, (2, 6))}


def images(size: int = 32, channels: int = 3) -> Inputs:
    """Two square images."""
    return lambda _: {"pixel_values": torch.randn(2, channels, size, size)}


def sound(_: Any) -> dict[str, Any]:
    """Two wave forms."""
    return {"input_values": torch.randn(2, 320)}


def both(_: Any) -> dict[str, Any]:
    """Two texts and two images."""
    return {"input_ids": torch.randint(1, 50, (2, 8)), "pixel_values": torch.randn(2, 3, 32, 32)}


def configuration(kind: str, settings: dict[str, Any]) -> Any:
    """Return a configuration; settings that are configurations themselves are `(kind, settings)`."""
    import transformers

    nested = {
        k: configuration(*v) if isinstance(v, tuple) and v and str(v[0]).endswith("Config") else v
        for k, v in settings.items()
    }
    return getattr(transformers, kind)(**nested)


def model(name: str, kind: str, config: str, settings: dict[str, Any], inputs: Inputs, **kwargs: Any) -> None:
    """Put a model into the catalogue: its class, its configuration's class and settings."""

    def factory() -> Case:
        import transformers

        made = getattr(transformers, kind)(configuration(config, settings))
        return made, (), inputs(made) | kwargs

    add("transformers", name, factory)


def decoder(name: str, prefix: str, settings: dict[str, Any], inputs: Inputs = ids, **kwargs: Any) -> None:
    """A causal language model."""
    model(name, f"{prefix}ForCausalLM", f"{prefix}Config", settings, inputs, use_cache=False, **kwargs)


# Decoders
decoder("llama", "Llama", DECODER)
decoder("llama eager, tied", "Llama", DECODER | {"attn_implementation": "eager", "tie_word_embeddings": True})
decoder("qwen2", "Qwen2", DECODER)
decoder("qwen3", "Qwen3", DECODER)
decoder("mistral, sliding window", "Mistral", DECODER | {"sliding_window": 4})
decoder("gemma2", "Gemma2", DECODER)
model("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", DECODER, ids, use_cache=False)
decoder("phi3", "Phi3", DECODER)
decoder("olmo2", "Olmo2", DECODER)
decoder("cohere", "Cohere", DECODER)
decoder("stablelm", "StableLm", DECODER)
decoder("mixtral", "Mixtral", DECODER | {"num_local_experts": 3})
decoder(
    "mixtral, expert by expert",
    "Mixtral",
    DECODER | {"num_local_experts": 3, "experts_implementation": "eager"},
)
decoder("qwen2-moe", "Qwen2Moe", EXPERTS | {"num_experts": 3, "shared_expert_intermediate_size": 12})
decoder(
    "deepseek-v3",
    "DeepseekV3",
    EXPERTS
    | {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 2,
        "head_dim": 4,
    },
)
decoder("gpt-oss", "GptOss", EXPERTS | {"num_local_experts": 3})
model(
    "gpt2",
    "GPT2LMHeadModel",
    "GPT2Config",
    {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50, "n_positions": 32},
    ids,
    use_cache=False,
)
model(
    "gpt2 eager, scaled by layer",
    "GPT2LMHeadModel",
    "GPT2Config",
    {
        "n_layer": 1,
        "n_embd": 16,
        "n_head": 2,
        "vocab_size": 50,
        "n_positions": 32,
        "attn_implementation": "eager",
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
    },
    ids,
    use_cache=False,
)
decoder(
    "gpt-neo",
    "GPTNeo",
    {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 50,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 32,
        "intermediate_size": 24,
    },
)
decoder(
    "gpt-j",
    "GPTJ",
    {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32, "rotary_dim": 4},
)
decoder("gpt-neox", "GPTNeoX", TEXT | {"max_position_embeddings": 32})
decoder("bloom", "Bloom", {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2})
decoder(
    "falcon",
    "Falcon",
    {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
)
decoder(
    "opt",
    "OPT",
    {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "ffn_dim": 24,
        "word_embed_proj_dim": 12,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    },
)
decoder(
    "mamba",
    "Mamba",
    {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    lambda m: {"input_ids": torch.randint(1, 50, (2, 6))},
)
decoder(
    "mamba2",
    "Mamba2",
    {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "state_size": 4,
        "num_heads": 4,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 4,
    },
)
decoder(
    "recurrent-gemma",
    "RecurrentGemma",
    DECODER | {"lru_width": 16, "num_hidden_layers": 3, "attention_window_size": 8},
)
decoder(
    "jamba",
    "Jamba",
    DECODER
    | {
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
)
decoder(
    "xglm",
    "XGLM",
    {
        "vocab_size": 50,
        "d_model": 16,
        "num_layers": 1,
        "attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": 32,
    },
)

# Encoders
model("bert", "BertForSequenceClassification", "BertConfig", TEXT, ids)
model("bert, masked words", "BertForMaskedLM", "BertConfig", TEXT, ids)
model("roberta", "RobertaModel", "RobertaConfig", TEXT, ids)
model(
    "distilbert",
    "DistilBertModel",
    "DistilBertConfig",
    {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ids,
)
model("albert", "AlbertModel", "AlbertConfig", TEXT | {"embedding_size": 8}, ids)
model("electra", "ElectraForMaskedLM", "ElectraConfig", TEXT | {"embedding_size": 8}, ids)
model(
    "deberta-v2",
    "DebertaV2Model",
    "DebertaV2Config",
    TEXT
    | {
        "relative_attention": True,
        "position_buckets": 4,
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": 8,
        "share_att_key": False,
    },
    ids,
)
model(
    "xlnet",
    "XLNetModel",
    "XLNetConfig",
    {"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
    ids,
)
model(
    "funnel",
    "FunnelModel",
    "FunnelConfig",
    {
        "vocab_size": 50,
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 24,
        "block_sizes": [1, 1],
        "num_decoder_layers": 1,
    },
    ids,
)
model("longformer", "LongformerModel", "LongformerConfig", TEXT | {"attention_window": 4}, ids)
model("big-bird", "BigBirdModel", "BigBirdConfig", TEXT | {"attention_type": "original_full"}, ids)
model("fnet", "FNetModel", "FNetConfig", TEXT, lambda m: {"input_ids": torch.randint(1, 50, (2, 8))})
model(
    "mobilebert",
    "MobileBertModel",
    "MobileBertConfig",
    TEXT
    | {
        "embedding_size": 8,
        "true_hidden_size": 16,
        "intra_bottleneck_size": 16,
        "hidden_size": 24,
        "num_feedforward_networks": 2,
    },
    ids,
)
model("modernbert", "ModernBertModel", "ModernBertConfig", TEXT | {"pad_token_id": 0}, ids)

# Encoders with decoders
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
model("t5", "T5ForConditionalGeneration", "T5Config", T5, pairs, use_cache=False)
model("mt5, gated", "MT5ForConditionalGeneration", "MT5Config", T5, pairs, use_cache=False)
model(
    "switch",
    "SwitchTransformersForConditionalGeneration",
    "SwitchTransformersConfig",
    T5
    | {
        "num_experts": 3,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "expert_capacity": 16,
    },
    pairs,
    use_cache=False,
)
model("bart", "BartForConditionalGeneration", "BartConfig", SEQ2SEQ, pairs, use_cache=False)
model(
    "whisper",
    "WhisperForConditionalGeneration",
    "WhisperConfig",
    SEQ2SEQ
    | {
        "num_mel_bins": 8,
        "max_source_positions": 12,
        "max_target_positions": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
    lambda m: {"input_features": torch.randn(2, 8, 24), "decoder_input_ids": torch.randint(1, 50, (2, 6))},
    use_cache=False,
)
model(
    "time-series",
    "TimeSeriesTransformerModel",
    "TimeSeriesTransformerConfig",
    {
        "prediction_length": 4,
        "context_length": 6,
        "lags_sequence": [1, 2],
        "num_time_features": 1,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
    },
    lambda m: {
        "past_values": torch.randn(2, 8),
        "past_time_features": torch.randn(2, 8, 1),
        "past_observed_mask": torch.ones(2, 8),
        "future_values": torch.randn(2, 4),
        "future_time_features": torch.randn(2, 4, 1),
    },
    use_cache=False,
)
model(
    "autoformer",
    "AutoformerModel",
    "AutoformerConfig",
    {
        "prediction_length": 4,
        "context_length": 6,
        "lags_sequence": [1, 2],
        "num_time_features": 1,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "label_length": 2,
        "moving_average": 3,
    },
    lambda m: {
        "past_values": torch.randn(2, 8),
        "past_time_features": torch.randn(2, 8, 1),
        "past_observed_mask": torch.ones(2, 8),
        "future_values": torch.randn(2, 4),
        "future_time_features": torch.randn(2, 4, 1),
    },
    use_cache=False,
)
model(
    "patchtst",
    "PatchTSTModel",
    "PatchTSTConfig",
    {
        "num_input_channels": 2,
        "context_length": 16,
        "patch_length": 4,
        "patch_stride": 4,
        "d_model": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 24,
    },
    lambda m: {"past_values": torch.randn(2, 16, 2)},
)

# Images
model("vit", "ViTForImageClassification", "ViTConfig", VISION, images())
model("deit", "DeiTModel", "DeiTConfig", VISION, images())
model(
    "beit",
    "BeitForImageClassification",
    "BeitConfig",
    VISION | {"use_relative_position_bias": True},
    images(),
)
model("dinov2", "Dinov2Model", "Dinov2Config", VISION, images())
model(
    "yolos",
    "YolosForObjectDetection",
    "YolosConfig",
    VISION | {"image_size": [32, 32], "num_detection_tokens": 3},
    images(),
)
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
model("swin", "SwinForImageClassification", "SwinConfig", SWIN, images())
model("swinv2", "Swinv2Model", "Swinv2Config", SWIN, images())
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
model("convnext", "ConvNextModel", "ConvNextConfig", STAGES, images())
model(
    "resnet",
    "ResNetForImageClassification",
    "ResNetConfig",
    STAGES | {"embedding_size": 8, "layer_type": "basic"},
    images(),
)
model(
    "segformer",
    "SegformerForSemanticSegmentation",
    "SegformerConfig",
    {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 16],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
    },
    images(),
)
model(
    "mobilevit",
    "MobileViTModel",
    "MobileViTConfig",
    {
        "image_size": 64,
        "hidden_sizes": [8, 12, 16],
        "neck_hidden_sizes": [4, 8, 8, 12, 12, 16, 16],
        "num_attention_heads": 2,
    },
    images(64),
)
model(
    "dpt",
    "DPTForDepthEstimation",
    "DPTConfig",
    VISION
    | {
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 8,
        "backbone_out_indices": [0, 1, 2, 3],
        "reassemble_factors": [4, 2, 1, 0.5],
        "num_hidden_layers": 4,
        "is_hybrid": False,
    },
    images(),
)
BACKBONE = ("ResNetConfig", STAGES | {"embedding_size": 8, "layer_type": "basic", "out_features": ["stage2"]})
model("detr", "DetrForObjectDetection", "DetrConfig", DETECTOR | {"backbone_config": BACKBONE}, images())
model(
    "conditional-detr",
    "ConditionalDetrForObjectDetection",
    "ConditionalDetrConfig",
    DETECTOR | {"backbone_config": BACKBONE},
    images(),
)
model(
    "deformable-detr",
    "DeformableDetrForObjectDetection",
    "DeformableDetrConfig",
    DETECTOR
    | {
        "d_model": 32,
        "decoder_layers": 2,
        "backbone_config": (
            "ResNetConfig",
            STAGES | {"embedding_size": 8, "layer_type": "basic", "out_features": ["stage1", "stage2"]},
        ),
        "num_feature_levels": 2,
    },
    images(),
)
model(
    "sam",
    "SamModel",
    "SamConfig",
    {
        "vision_config": (
            "SamVisionConfig",
            {
                "image_size": 32,
                "patch_size": 8,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "mlp_dim": 24,
                "output_channels": 8,
                "window_size": 2,
                "global_attn_indexes": [1],
                "num_pos_feats": 4,
            },
        ),
        "prompt_encoder_config": (
            "SamPromptEncoderConfig",
            {
                "hidden_size": 8,
                "image_size": 32,
                "patch_size": 8,
                "mask_input_channels": 4,
                "num_point_embeddings": 4,
            },
        ),
        "mask_decoder_config": (
            "SamMaskDecoderConfig",
            {
                "hidden_size": 8,
                "mlp_dim": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 8,
                "iou_head_depth": 2,
            },
        ),
    },
    lambda m: {"pixel_values": torch.randn(1, 3, 32, 32), "input_points": torch.rand(1, 1, 2, 2) * 32},
)
model(
    "perceiver",
    "PerceiverForSequenceClassification",
    "PerceiverConfig",
    {
        "d_latents": 16,
        "d_model": 16,
        "num_latents": 4,
        "num_blocks": 1,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "qk_channels": 16,
        "v_channels": 16,
        "vocab_size": 50,
        "max_position_embeddings": 8,
    },
    ids,
)
model(
    "videomae",
    "VideoMAEModel",
    "VideoMAEConfig",
    VISION | {"num_frames": 4},
    lambda m: {"pixel_values": torch.randn(1, 4, 3, 32, 32)},
)

# Text and images
CLIP = {
    "text_config": TEXT | {"max_position_embeddings": 8, "projection_dim": 8, "eos_token_id": 2},
    "vision_config": VISION | {"projection_dim": 8},
    "projection_dim": 8,
}
model("clip", "CLIPModel", "CLIPConfig", CLIP, both)
model(
    "siglip",
    "SiglipModel",
    "SiglipConfig",
    {"text_config": TEXT | {"max_position_embeddings": 8}, "vision_config": VISION},
    both,
)
model("vilt", "ViltModel", "ViltConfig", TEXT | {"image_size": 32, "patch_size": 8}, both)
model(
    "blip, text and image",
    "BlipModel",
    "BlipConfig",
    {
        "text_config": TEXT | {"encoder_hidden_size": 16, "max_position_embeddings": 32, "projection_dim": 8},
        "vision_config": VISION,
        "projection_dim": 8,
    },
    both,
)

# Sound
model("wav2vec2", "Wav2Vec2Model", "Wav2Vec2Config", SPEECH, sound)
model(
    "hubert, layer norm",
    "HubertModel",
    "HubertConfig",
    SPEECH | {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    sound,
)
model("wavlm", "WavLMModel", "WavLMConfig", SPEECH | {"num_buckets": 8, "max_bucket_distance": 8}, sound)
model(
    "audio-spectrogram",
    "ASTModel",
    "ASTConfig",
    {k: v for k, v in VISION.items() if k != "image_size"}
    | {"max_length": 24, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4},
    lambda m: {"input_values": torch.randn(2, 24, 16)},
)
model(
    "encodec",
    "EncodecModel",
    "EncodecConfig",
    {
        "num_filters": 4,
        "hidden_size": 8,
        "num_residual_layers": 1,
        "upsampling_ratios": [2, 2],
        "codebook_size": 8,
        "num_lstm_layers": 1,
        "target_bandwidths": [36.0],
        "norm_type": "time_group_norm",
    },
    lambda m: {"input_values": torch.randn(1, 1, 64)},
)
model(
    "decision-transformer",
    "DecisionTransformerModel",
    "DecisionTransformerConfig",
    {"state_dim": 3, "act_dim": 2, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    lambda m: {
        "states": torch.randn(1, 4, 3),
        "actions": torch.randn(1, 4, 2),
        "rewards": torch.randn(1, 4, 1),
        "returns_to_go": torch.randn(1, 4, 1),
        "timesteps": torch.arange(4)[None],
        "attention_mask": torch.ones(1, 4),
    },
)
