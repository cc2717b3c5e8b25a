"""The flat numbering of every Key and Value channel of a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["k", "v"]
KINDS: tuple[Kind, Kind] = ("k", "v")


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer offers to a mask.

    `key_width` and `value_width` are C of the keys and of the values; they differ in some architectures.
    """

    name: str
    index: int
    num_query_heads: int
    num_kv_heads: int
    key_width: int
    value_width: int

    def width(self, kind: Kind) -> int:
        """C of the keys or of the values."""
        return self.key_width if kind == "k" else self.value_width

    def num_channels(self, kind: Kind) -> int:
        """G * C of the keys or of the values."""
        return self.num_kv_heads * self.width(kind)


@dataclass(frozen=True)
class ChannelSpace:
    """All channels of a model as one flat axis of length N: layer by layer, K before V, head by head.

    Layers are ordered by their index.
    """

    layers: tuple[LayerShape, ...]

    @cached_property
    def slices(self) -> dict[tuple[int, Kind], slice]:
        """Where the channels of (position of the layer in `layers`, kind) lie on the flat axis."""
        slices, start = {}, 0
        for position, layer in enumerate(self.layers):
            for kind in KINDS:
                stop = start + layer.num_channels(kind)
                slices[position, kind] = slice(start, stop)
                start = stop
        return slices

    @property
    def num_channels(self) -> int:
        """N, the number of channels over all layers, K and V."""
        return sum(layer.num_channels(kind) for layer in self.layers for kind in KINDS)

    def view(self, flat: Tensor, position: int, kind: Kind) -> Tensor:
        """The [..., G, C] view of a flat tensor [..., N] for one layer and kind."""
        return flat[..., self.slices[position, kind]].unflatten(-1, (self.layers[position].num_kv_heads, -1))

    def parts(self, flat: Tensor) -> list[Tensor]:
        """All views [..., G, C] of a flat tensor [..., N] in their order, layer by layer, K before V.

        The gradient of all of them together is one concatenation, however many layers there are.
        """
        pieces = flat.split([part.stop - part.start for part in self.slices.values()], dim=-1)
        heads = [layer.num_kv_heads for layer in self.layers for _ in KINDS]
        return [piece.unflatten(-1, (count, -1)) for piece, count in zip(pieces, heads, strict=True)]

    def labels(self) -> dict[str, Tensor]:
        """For every channel on the flat axis: its layer position, kind (0 K, 1 V), KV head and channel.

        Each value is a LongTensor [N].
        """
        columns: dict[str, list[Tensor]] = {"layer": [], "kind": [], "head": [], "channel": []}
        for position, layer in enumerate(self.layers):
            for number, kind in enumerate(KINDS):
                heads, width = layer.num_kv_heads, layer.width(kind)
                columns["layer"].append(torch.full((heads * width,), position))
                columns["kind"].append(torch.full((heads * width,), number))
                columns["head"].append(torch.arange(heads).repeat_interleave(width))
                columns["channel"].append(torch.arange(width).repeat(heads))
        return {name: torch.cat(parts) for name, parts in columns.items()}
