"""A finished mask, per layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.space import ChannelSpace

TENSORS = ("k_mask", "v_mask", "k_importance", "v_importance")


@dataclass(frozen=True)
class LayerMask:
    """The channels one attention layer keeps.

    k_mask, v_mask: bool [G, C], True keeps the channel. k_importance, v_importance: float [G, C] in [0, 1], in the
    order in which the method would keep units. sparsity: fraction of the layer's channels removed, K and V together.
    """

    k_mask: Tensor
    v_mask: Tensor
    k_importance: Tensor
    v_importance: Tensor

    @property
    def sparsity(self) -> float:
        """Fraction of the layer's K and V channels that are removed."""
        total = self.k_mask.numel() + self.v_mask.numel()
        return 1 - (int(self.k_mask.sum()) + int(self.v_mask.sum())) / total


MaskSet = dict[str, LayerMask]


def masks_by_layer(space: ChannelSpace, keep: Tensor, importance: Tensor) -> MaskSet:
    """Cut flat tensors, keep bool [N] and importance float [N], into one LayerMask per layer, in layer order."""
    keep, importance = keep.cpu(), importance.float().cpu()
    return {
        layer.name: LayerMask(
            *(space.view(keep, i, kind).clone() for kind in ("k", "v")),
            *(space.view(importance, i, kind).clone() for kind in ("k", "v")),
        )
        for i, layer in enumerate(space.layers)
    }


def flat_keep(space: ChannelSpace, masks: MaskSet) -> Tensor:
    """The bool tensor [N] of a MaskSet whose layers are those of `space`.

    Raises UserError where names or shapes differ.
    """
    parts = []
    for layer in space.layers:
        mask = masks.get(layer.name)
        shapes = ((layer.num_kv_heads, layer.key_width), (layer.num_kv_heads, layer.value_width))
        if mask is None or (tuple(mask.k_mask.shape), tuple(mask.v_mask.shape)) != shapes:
            raise UserError(
                f"the mask does not fit layer {layer.name!r} of this model; use the checkpoint it was made for"
            )
        parts += [mask.k_mask.flatten(), mask.v_mask.flatten()]
    return torch.cat(parts)


def flat_importance(space: ChannelSpace, masks: MaskSet) -> Tensor:
    """The importance [N] of a MaskSet whose layers are those of `space`."""
    layers = [masks[layer.name] for layer in space.layers]
    return torch.cat([part.flatten() for mask in layers for part in (mask.k_importance, mask.v_importance)])
