"""Weights under construction, and what each Key and Value channel is for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechint.validation.model import PlantedConfig, PlantedModel

K, V = 0, 1
KIND_NAMES = "KV"

Place = tuple[int, int, int, int]
"""Layer, kind (K or V), KV head and channel."""


@dataclass(frozen=True)
class Stream:
    """One-hot blocks of the residual stream: this token, its position, the previous token, the answer, and waste.

    Token ids are 1 .. num_tokens; id 0 begins every row and has no place in any block. The last column is the bias.
    """

    num_tokens: int
    num_positions: int

    @property
    def width(self) -> int:
        """W, the width of the stream without the bias column."""
        return 4 * self.num_tokens + self.num_positions

    @property
    def waste(self) -> slice:
        """Columns that nothing planted reads, and neither does the readout."""
        return slice(3 * self.num_tokens + self.num_positions, self.width)

    @property
    def bias(self) -> int:
        """The column that is always 1."""
        return self.width

    def token(self, number: int) -> int:
        """Column of a token's number, 0 .. num_tokens - 1."""
        return number

    def position(self, number: int) -> int:
        """Column of a position."""
        return self.num_tokens + number

    def previous(self, number: int) -> int:
        """Column of the previous token's number."""
        return self.num_tokens + self.num_positions + number

    def answer(self, number: int) -> int:
        """Column of the answer's number, which the readout turns into a logit."""
        return 2 * self.num_tokens + self.num_positions + number


class Blueprint:
    """Weights of an attention-only model, in double precision, and the purpose of every channel.

    query [L, H, C, W + 1], key and value [L, G, C, W + 1] (the last column is the bias), output [L, H, C, W].
    purpose: str [L, 2, G, C], empty where a channel is free. planted, joint: bool of the same shape; `joint` channels
    are inert only when all of them are removed together. These arrays have the order of a `ChannelSpace`.
    dimensions: LongTensor [L, 2, G], how many directions of a head's keys or values the circuit needs where these are
    fewer than its planted channels; -1 elsewhere.
    """

    def __init__(
        self, stream: Stream, num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> None:
        self.stream = stream
        self.group = num_heads // num_kv_heads
        columns = stream.width + 1
        self.query = torch.zeros(num_layers, num_heads, head_dim, columns, dtype=torch.double)
        self.key = torch.zeros(num_layers, num_kv_heads, head_dim, columns, dtype=torch.double)
        self.value = torch.zeros_like(self.key)
        self.output = torch.zeros(num_layers, num_heads, head_dim, stream.width, dtype=torch.double)
        shape = (num_layers, 2, num_kv_heads, head_dim)
        self.purpose = np.full(shape, "", dtype=object)
        self.planted = torch.zeros(shape, dtype=torch.bool)
        self.joint = torch.zeros(shape, dtype=torch.bool)
        self.dimensions = torch.full(shape[:3], -1)

    @property
    def needed(self) -> Tensor:
        """How many directions of every head's keys and values the circuit needs, LongTensor [L, 2, G]."""
        return torch.where(self.dimensions < 0, self.planted.sum(-1), self.dimensions)

    def mark(self, place: Place, purpose: str, planted: bool = False, joint: bool = False) -> None:
        """Say what a channel is for."""
        self.purpose[place] = purpose
        self.planted[place] = planted
        self.joint[place] = joint

    def free(self, layer: int, kind: int, head: int) -> list[int]:
        """Channels of a KV head that have no purpose yet."""
        return [channel for channel, text in enumerate(self.purpose[layer, kind, head]) if not text]

    def query_heads(self, kv_head: int) -> slice:
        """The query heads that share a KV head."""
        return slice(kv_head * self.group, (kv_head + 1) * self.group)

    def read(self, weights: Tensor, size: float, generator: torch.Generator) -> None:
        """Fill query, key or value weights [..., W + 1] with Gaussian noise that reads everything but waste."""
        weights.copy_(size * gaussian(weights, generator))
        weights[..., self.stream.waste] = 0

    def shuffle(self, generator: torch.Generator, keys: bool) -> None:
        """Move KV heads, value channels and, with `keys`, key channels to random places; the function stays the same.

        Afterwards no unit can be found by its number. RoPE ties key channels to their places.
        """
        num_layers, num_heads, width = self.key.shape[:3]
        for layer in range(num_layers):
            order = torch.randperm(num_heads, generator=generator)
            grouped = (order[:, None] * self.group + torch.arange(self.group)).flatten()
            self.key[layer], self.value[layer] = self.key[layer, order], self.value[layer, order]
            self.query[layer], self.output[layer] = self.query[layer, grouped], self.output[layer, grouped]
            self._reorder_notes(layer, order)
            self.dimensions[layer] = self.dimensions[layer][:, order]
            for head in range(num_heads):
                queries = self.query_heads(head)
                order = torch.randperm(width, generator=generator)
                self.value[layer, head] = self.value[layer, head, order]
                self.output[layer, queries] = self.output[layer, queries][:, order]
                self._reorder_notes((layer, V, head), order)
                if keys:
                    order = torch.randperm(width, generator=generator)
                    self.key[layer, head] = self.key[layer, head, order]
                    self.query[layer, queries] = self.query[layer, queries][:, order]
                    self._reorder_notes((layer, K, head), order)

    def _reorder_notes(self, where: int | tuple[int, int, int], order: Tensor) -> None:
        """Apply an order to the notes of one KV head and kind, or to the KV heads of one layer."""
        for notes in (self.purpose, self.planted, self.joint):
            moved = order.numpy() if isinstance(notes, np.ndarray) else order
            notes[where] = notes[where][:, moved] if isinstance(where, int) else notes[where][moved]

    def build(self, rotary: bool = False, rope_theta: float = 10_000.0) -> PlantedModel:
        """The frozen model in eval mode, float32."""
        num_layers, num_heads, head_dim, _ = self.query.shape
        stream, width = self.stream, self.stream.width
        config = PlantedConfig(
            vocab_size=stream.num_tokens + 1,
            hidden_size=-(-width // num_heads) * num_heads,  # Llama's settings want a multiple of the heads
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=self.key.shape[1],
            head_dim=head_dim,
            max_position_embeddings=stream.num_positions or 2**20,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            rotary=rotary,
        )
        model = PlantedModel(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.zero_()
        for number in range(stream.num_tokens):
            model.embed_tokens.weight[number + 1, stream.token(number)] = 1
            model.lm_head.weight[number + 1, stream.answer(number)] = 1
        if model.embed_positions is not None:
            for number in range(stream.num_positions):
                model.embed_positions.weight[number, stream.position(number)] = 1
        for layer, attention in enumerate(model.layers):
            for name in ("query", "key", "value"):
                weights = getattr(self, name)[layer].flatten(0, 1)  # [heads * C, W + 1]
                projection = getattr(attention, f"{name[0]}_proj")
                projection.weight[:, :width] = weights[:, :-1]
                projection.bias[:] = weights[:, -1]
            attention.o_proj.weight[:width] = self.output[layer].flatten(0, 1).T
        return model


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape and type of a tensor."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)
