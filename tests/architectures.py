"""Tiny random models of every supported architecture."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_HEADS = COMMON | {"head_dim": 8}
WINDOWED = SMALL_HEADS | {"sliding_window": 8}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 97,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": COMMON | {"rotary_pct": 0.5},
    "llama": COMMON,
    "mistral": COMMON | {"sliding_window": 8},
    "qwen2": COMMON,
    "qwen3": SMALL_HEADS,
    "gemma2": WINDOWED,
    "gemma3_text": WINDOWED,
    "phi": COMMON,
    "phi3": COMMON | {"sliding_window": 8},
    "olmo2": COMMON,
    "smollm3": COMMON | {"num_hidden_layers": 4},
    "opt": {
        "vocab_size": 97,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
    "gpt_oss": WINDOWED | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "deepseek_v3": {
        **COMMON,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}

# How RoPE pairs the key channels of the first layer, as (channel, partner); channels not named stand alone.
HALVES_OF_8 = {0: 4, 1: 5, 2: 6, 3: 7}
PARTNERS: dict[str, dict[int, int]] = {
    **dict.fromkeys(ARCHITECTURES, HALVES_OF_8),
    "gpt2": {},
    "opt": {},
    "gpt_neox": {0: 2, 1: 3},
    "phi": {0: 2, 1: 3},
    "deepseek_v3": {8: 10, 9: 11},
}

UNSUPPORTED: dict[str, dict[str, Any]] = {
    "xglm": {"vocab_size": 97, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "jetmoe": COMMON | {"kv_channels": 8, "num_local_experts": 2},
    "diffllama": COMMON,
}

# Not on the list above, but what it rotates is laid out differently.
OTHERS: dict[str, dict[str, Any]] = {"cohere": COMMON}


def tiny_model(name: str, **changes: Any) -> PreTrainedModel:
    """A random model in eval mode whose weights are frozen and large enough for every channel to matter."""
    settings = (ARCHITECTURES | UNSUPPORTED | OTHERS)[name] | changes
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**settings)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(5)
    return model
