"""A tiny random model of every causal language model that transformers can build, from its configuration classes."""

import contextlib
import io
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

LARGEST = 3_000_000  # parameters of what still counts as tiny

# Whatever a configuration has of these is made small.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 97),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "emb_dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("ffn_hidden_size", "dff", "d_inner", "dim_ff", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("shared_intermediate_size", "dense_intermediate_size", "expert_ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "index_head_dim", "dim_head"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "kv_channels"), 8),
    **dict.fromkeys(("swa_head_dim", "hidden_size_per_layer_input", "laurel_rank", "router_hidden_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank"), 16),
    **dict.fromkeys(("kv_lora_rank", "o_lora_rank", "moe_shared_expert_intermediate_size", "hc_lowrank"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "index_n_heads"), 2),
    **dict.fromkeys(("linear_num_key_heads", "zero_expert_num", "o_groups"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "mamba_dt_rank"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("image_size", "crop_size", "num_mel_bins"), 32),
    **dict.fromkeys(("patch_size", "depth", "temporal_patch_size"), 2),
    **dict.fromkeys(("out_hidden_size", "projection_dim", "vision_output_dim", "projector_dim"), 32),
    "swa_num_attention_heads": 4,
    "qk_rope_head_dim": 4,
    "rotary_dim": 4,
    "index_topk": 6,
    "embedding_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LATENT = {"num_key_value_heads": 4}
ROTATED_PART = LATENT | {"head_dim": 4}  # of the latent keys: head_dim is that of what is rotated
HYBRID = {"layer_types": ["linear_attention", "full_attention"] * 2}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2}

# What the general sizes do not fit.
OTHERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v3", "youtu"), ROTATED_PART),
    **dict.fromkeys(("axk2", "deepseek_v2", "deepseek_v32", "minicpm3", "glm4_moe_lite"), LATENT),
    **dict.fromkeys(("glm_moe_dsa", "hy_v4", "kolibri1"), LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "minimax"), HYBRID),
    "granitemoehybrid": HYBRID | {"mamba_expand": 2},
    "bailing_hybrid": LATENT | HYBRID | {"mlp_layer_types": ["dense", "sparse"] * 2, "num_expert_group": 1},
    "kimi_linear": LATENT | HYBRID | {"mlp_layer_types": ["dense", "sparse"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "use_mamba_kernels": False,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_key_value_heads": 4,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "use_mamba_kernels": False,
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention", "conv", "sliding_attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gemma3n_text": WINDOWS
    | {
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        "intermediate_size": [48] * 4,
    },
    "gemma4_text": WINDOWS | {"num_kv_shared_layers": 2},
    "gemma4_unified_text": WINDOWS | {"num_kv_shared_layers": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "zaya": {"num_experts_per_tok": 1},
    "longcat_flash": ROTATED_PART | {"num_layers": 2},
    "deepseek_v4": {"num_key_value_heads": 1},
    "minimax_m3_vl_text": {"mlp_layer_types": ["dense", "sparse"] * 2},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}}
    },
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "inkling_text": {"mlp_layer_types": ["dense", "sparse"] * 2, "d_rel": 4, "rel_extent": 16},
    "inkling2_text": {"mlp_layer_types": ["dense", "sparse"] * 2, "d_rel": 4, "rel_extent": 16},
    "doge": {"keep_window_size": 64},
    "modernbert-decoder": {"local_attention": 16},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "prophetnet": {"ngram": 1},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 50,
        "ple_embed_dim": 8,
        "hc_count": 2,
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "dots3_note_text": LATENT
    | {
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        "per_layer_config": {},
        "head_dim": 12,
    },
}


# Families that are refused, and words of the reason.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("big_bird", "megatron-bert", "mvp", "rembert", "roformer"), "in code of its own"),
    **dict.fromkeys(("trocr", "xglm", "cpmant", "prophetnet", "xlm", "xlnet"), "in code of its own"),
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "xlstm"), "no softmax attention"),
    "rwkv": "no softmax attention",
    "reformer": "in code of its own",
    **dict.fromkeys(("diffllama", "hrm_text"), "run more than once"),
    "jetmoe": "repeats its 2 KV heads",
    "git": "no mask reaches",
}

# Families of which no tiny model can be built here, and why.
NOT_BUILT: dict[str, str] = {
    "gemma4_assistant": "reads the cache of another model",
    "gemma4_unified_assistant": "reads the cache of another model",
    "musicgen": "writes sound",
    "musicgen_melody": "writes sound",
    "phi4_multimodal": "its sound and image parts have no small size",
    "moss_transcribe_diarize": "reads sound",
    "blt": "its hash embeddings have no small size",
}


def families() -> list[str]:
    """The model types of every causal language model in transformers."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def wrapper_families() -> list[str]:
    """The model types of every model that reads images beside text and writes text."""
    return [kind for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if kind in CONFIG_MAPPING]


def tiny_config(kind: str, **changes: Any) -> PreTrainedConfig:
    """A small configuration of a family. Raises whatever its class raises where that cannot be."""
    return _tiny(CONFIG_MAPPING[kind], **changes)


def _tiny(config_class: type[PreTrainedConfig], **changes: Any) -> PreTrainedConfig:
    default = _default(config_class)
    names = {*config_class.__init__.__code__.co_varnames, *vars(default)}
    for base in config_class.__mro__:
        names.update(vars(base).get("__annotations__", {}))
    settings: dict[str, Any] = {}
    for name, value in SIZES.items():
        before = _current(default, name)
        if name in names and (before is None or (isinstance(before, int) and not isinstance(before, bool))):
            settings[name] = value
    for name in config_class.sub_configs:
        if isinstance(part := getattr(default, name, None), PreTrainedConfig):
            settings[name] = _tiny(type(part)).to_dict()
    for name in vars(default):
        if name.endswith("_token_id") and name not in SIZES and isinstance(_current(default, name), int):
            settings[name] = 3
    if _current(default, "is_decoder") is False:
        settings["is_decoder"] = True  # without it most of these read in both directions
    settings |= OTHERS.get(config_class.model_type, {}) | changes
    return config_class(**settings)


def _default(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    try:
        return config_class()
    except Exception:  # some defaults do not pass the checks of their own class
        return config_class(**OTHERS[config_class.model_type])


def _current(config: PreTrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except RuntimeError:  # differs between layers
        return 0


def family_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A tiny random model in eval mode, frozen, its weights large enough for every channel to matter."""
    torch.manual_seed(0)
    with contextlib.redirect_stderr(io.StringIO()):  # defaults of some classes complain about themselves
        config = tiny_config(kind, **changes)
        with torch.device("meta"):
            size = sum(p.numel() for p in _build(config).parameters())
        assert size < LARGEST, f"{kind} is not tiny: {size:,} parameters"
        model = _build(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(5)
        elif not parameter.any():  # scales and biases that begin at zero
            parameter.normal_(std=0.5)
    return model


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    wrapped = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if wrapped else MODEL_FOR_CAUSAL_LM_MAPPING
    model_class: Any = mapping[type(config)]
    return model_class._from_config(config)
