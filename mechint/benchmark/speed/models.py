"""The models that speed is measured on: bundled ones, any checkpoint, and shapes with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mechint.checkpoints import CheckpointLoader

# The sizes of published models; speed does not depend on the weights.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2_135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    "llama_1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "llama_8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "llama_70b": {
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    # one small layer below as many tokens as the largest vocabularies have
    "vocabulary_262k": {
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 262_144,
    },
}


def make_model(name: str, device: torch.device, dtype: str) -> PreTrainedModel:
    """A frozen model: random weights where `name` is one of SHAPES, else the checkpoint that it names.

    dtype: as for `CheckpointLoader.load`; auto is bfloat16 for shapes on CUDA. Raises UserError where it cannot
    be read.
    """
    if name not in SHAPES:
        return CheckpointLoader().load(name, device, dtype).model
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    return random_llama(SHAPES[name], device, getattr(torch, dtype))


def random_llama(shape: dict[str, Any], device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A frozen Llama of a shape, made on its device and in its dtype, without a larger copy anywhere."""
    config = LlamaConfig(max_position_embeddings=8192, **shape)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def step_flops(model: PreTrainedModel, batch_size: int, sequence_length: int) -> float:
    """Floating-point operations of one forward pass and one backward pass into activations only.

    Every weight of a matrix product is used twice a token in either; causal attention adds its own products.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    inputs = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in inputs)
    weights += head.numel() if id(head) in inputs else 0
    widths = 2 * config.num_hidden_layers * config.hidden_size
    tokens = batch_size * sequence_length
    # Attention's backward pass forms five products of the same size as the two of its forward pass.
    return 4 * weights * tokens + (2 + 5) * tokens * (sequence_length / 2) * widths
