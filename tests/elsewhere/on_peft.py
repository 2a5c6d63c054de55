"""PEFT's adapters, on top of a small transformer, and of plain layers for those with convolutions."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Case, add
from torch import nn

TARGETS = ["q_proj", "v_proj", "down_proj"]


def adapter(name: str, kind: str, settings: dict[str, Any]) -> None:
    """Put Llama with an adapter into the catalogue; what the adapter starts at zero is moved from it."""

    def factory() -> Case:
        import peft
        from transformers import LlamaConfig, LlamaForCausalLM

        settings_of_llama = LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
        )
        config = getattr(peft, kind)(**settings)
        model = peft.get_peft_model(LlamaForCausalLM(settings_of_llama), config)
        return model, (), {"input_ids": torch.randint(1, 50, (2, 8)), "use_cache": False}

    add("peft", name, factory)


def _convolutional(name: str, kind: str, settings: dict[str, Any]) -> None:
    def factory() -> Case:
        import peft

        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 4))
        config = getattr(peft, kind)(**settings | {"target_modules": ["0", "2", "4"]})
        return peft.get_peft_model(net, config), (torch.randn(2, 3, 8, 8),), {}

    add("peft", name, factory)


adapter("lora", "LoraConfig", {"r": 4, "target_modules": TARGETS})
adapter(
    "lora, dropout",
    "LoraConfig",
    {"r": 4, "target_modules": TARGETS, "lora_dropout": 0.2, "bias": "lora_only"},
)
adapter("dora", "LoraConfig", {"r": 4, "target_modules": TARGETS, "use_dora": True})
adapter(
    "adalora",
    "AdaLoraConfig",
    {"init_r": 4, "target_modules": TARGETS, "total_step": 10, "tinit": 1, "tfinal": 2},
)
adapter("loha", "LoHaConfig", {"r": 4, "target_modules": TARGETS})
adapter("lokr", "LoKrConfig", {"r": 4, "target_modules": TARGETS})
adapter("ia3", "IA3Config", {"target_modules": TARGETS, "feedforward_modules": ["down_proj"]})
adapter("oft", "OFTConfig", {"oft_block_size": 4, "target_modules": TARGETS})
adapter("boft", "BOFTConfig", {"boft_block_size": 4, "target_modules": TARGETS})
adapter("hra", "HRAConfig", {"r": 4, "target_modules": TARGETS})
adapter("vera", "VeraConfig", {"r": 4, "target_modules": ["q_proj", "v_proj"]})
adapter("prefix", "PrefixTuningConfig", {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"})
adapter("prompt", "PromptTuningConfig", {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"})
adapter("layernorm", "LNTuningConfig", {"target_modules": ["input_layernorm"]})
_convolutional("lora on convolutions", "LoraConfig", {"r": 2})
_convolutional("dora on convolutions", "LoraConfig", {"r": 2, "use_dora": True})
_convolutional("loha on convolutions", "LoHaConfig", {"r": 2, "use_effective_conv2d": True})
_convolutional("lokr on convolutions", "LoKrConfig", {"r": 2, "use_effective_conv2d": True})
