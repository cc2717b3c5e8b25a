"""The smallest decoder-only transformer that `transformers` can run: attention and a residual stream, nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)


class PlantedConfig(LlamaConfig):
    """Llama's settings that concern attention; `rotary` chooses RoPE instead of learned positions."""

    model_type = "planted"

    rotary: bool = False


class PlantedAttention(nn.Module):
    """Causal attention with grouped queries, biases on queries, keys and values, and none on the output."""

    def __init__(self, config: PlantedConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim: int = config.head_dim  # type: ignore[assignment]
        self.num_key_value_groups = config.num_attention_heads // int(config.num_key_value_heads or 1)
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        queries, keys = (
            config.num_attention_heads * self.head_dim,
            int(config.num_key_value_heads or 1) * self.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, queries)
        self.k_proj = nn.Linear(config.hidden_size, keys)
        self.v_proj = nn.Linear(config.hidden_size, keys)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None,
        **kwargs: Any,
    ) -> Tensor:
        """What attention adds to the residual stream, [B, T, W], from the stream hidden [B, T, W]."""
        heads = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden).view(heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotation is not None:
            query, key = apply_rotary_pos_emb(query, key, *rotation)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, _ = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.o_proj(mixed.reshape(*hidden.shape[:-1], -1))


class PlantedModel(PreTrainedModel):
    """Embedding, attention layers on a residual stream, and a linear readout: no normalisation and no MLP.

    What is written into the stream stays there unchanged, so a circuit can be set by hand in one-hot blocks. The model
    goes through the same attention interface as any other, so masks act on it by the same code.
    """

    config_class = PlantedConfig
    _supports_sdpa = True

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = None if config.rotary else nn.Embedding(config.max_position_embeddings, width)
        self.rotary_emb = LlamaRotaryEmbedding(config) if config.rotary else None
        self.layers = nn.ModuleList(PlantedAttention(config, i) for i in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits [B, T, V] for input_ids [B, T]."""
        hidden = self.embed_tokens(input_ids)  # [B, T, W]
        if position_ids is None:
            position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotation = None if self.rotary_emb is None else self.rotary_emb(hidden, position_ids)
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions(position_ids)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=position_ids,
        )
        for layer in self.layers:
            hidden = hidden + layer(hidden, mask, rotation, **kwargs)
        return CausalLMOutput(logits=self.lm_head(hidden))
