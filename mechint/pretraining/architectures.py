"""The small architectures that can be trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


class TiedKeyValue(nn.Module):
    """K = V: one learned projection [D, 2 D] (queries, keys) read as GPT-2's [D, 3 D] (queries, keys, values)."""

    def forward(self, query_key: Tensor) -> Tensor:
        """Repeat the key part as the value part; works for the weight [D, 2 D] and the bias [2 D]."""
        query, key = query_key.chunk(2, dim=-1)
        return torch.cat([query, key, key], dim=-1)

    def right_inverse(self, query_key_value: Tensor) -> Tensor:
        """Drop the value part."""
        query, key, _ = query_key_value.chunk(3, dim=-1)
        return torch.cat([query, key], dim=-1)


@dataclass(kw_only=True)
class Gpt2Architecture:
    """GPT-2 style: learned positions, LayerNorm, biases, GELU; with `kv_tied`, K = V in every layer."""

    num_layers: int
    num_heads: int
    width: int
    dropout: float
    kv_tied: bool = False

    def build(self, tokenizer: PreTrainedTokenizerBase, positions: int) -> PreTrainedModel:
        """A freshly initialised model for `positions` positions and the tokenizer's vocabulary."""
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=positions,
            n_embd=self.width,
            n_layer=self.num_layers,
            n_head=self.num_heads,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = GPT2LMHeadModel(config)
        if self.kv_tied:
            for name, module in model.named_modules():
                if name.endswith(".c_attn"):
                    parametrize.register_parametrization(module, "weight", TiedKeyValue())
                    parametrize.register_parametrization(module, "bias", TiedKeyValue())
        return model


@dataclass(kw_only=True)
class LlamaArchitecture:
    """Llama style: RoPE, grouped queries, RMSNorm, SwiGLU, no biases."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    width: int
    mlp_width: int
    dropout: float

    def build(self, tokenizer: PreTrainedTokenizerBase, positions: int) -> PreTrainedModel:
        """A freshly initialised model for `positions` positions and the tokenizer's vocabulary."""
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=positions,
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            attention_dropout=self.dropout,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return LlamaForCausalLM(config)


def settle(model: PreTrainedModel) -> None:
    """Turn tied projections into the plain weights of the standard architecture, in place."""
    for module in model.modules():
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
