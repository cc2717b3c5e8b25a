"""Random masks that keep as much as a given one, everywhere: what chance means."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.masking.units import Units

# Where the bands of a place's units by size end, as shares of them.
BANDS = (0.25, 0.5, 0.75, 1.0)


def places(units: Units) -> Tensor:
    """The layer, KV head and kind of every unit as one number, LongTensor [U]; units of K and V have a kind of their
    own.
    """
    return _together(units, units.layer, units.head)


def matched_places(units: Units) -> Tensor:
    """Where random masks keep as many units as a given one, LongTensor [U]: the places, or layer and kind alone where
    heads are units, of which a place has only one.
    """
    found = places(units)
    return found if len(found.unique()) < units.count else _together(units, units.layer)


def _together(units: Units, *where: Tensor) -> Tensor:
    """One number for all units that share these values and their kind, LongTensor [U]."""
    kind = units.has_key.long() + 2 * units.has_value.long()
    return torch.unique(torch.stack([*where, kind], 1), dim=0, return_inverse=True)[1]


def only_mask(units: Units, keep: Tensor) -> bool:
    """Whether no other mask keeps as many units as keep, bool [U], in the same places."""
    place = matched_places(units)
    kept, there = torch.bincount(place, keep.cpu().double()), torch.bincount(place)
    return bool(((kept == 0) | (kept == there)).all())


def matched_random_masks(
    units: Units, keep: Tensor, count: int, generator: torch.Generator, sizes_of: Tensor | None = None
) -> list[Tensor]:
    """Random masks bool [U] with the same counts per layer, KV head and kind as keep, bool [U]; of heads, per layer
    and kind.

    sizes_of: a size of every unit, float [U]; counts are then also the same in every
    quarter of a place's units by size.
    """
    place = matched_places(units)
    if sizes_of is not None:
        place = len(BANDS) * place + _band(place, sizes_of.cpu())
    quotas = torch.bincount(place[keep.cpu()], minlength=int(place.max()) + 1)
    masks = []
    for _ in range(count):
        order = torch.argsort(torch.rand(units.count, generator=generator))
        order = order[torch.argsort(place[order], stable=True)]  # place by place, at random inside each
        sizes = torch.bincount(place, minlength=len(quotas))
        starts = sizes.cumsum(0) - sizes
        rank = torch.arange(units.count) - starts[place[order]]
        mask = torch.zeros(units.count, dtype=torch.bool)
        mask[order] = rank < quotas[place[order]]
        masks.append(mask)
    return masks


def _band(place: Tensor, sizes_of: Tensor) -> Tensor:
    """Which quarter of the units of its place a unit is in, by size, LongTensor [U]."""
    order = torch.argsort(sizes_of, stable=True)
    order = order[torch.argsort(place[order], stable=True)]
    sizes = torch.bincount(place)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[place[order]]
    return rank * len(BANDS) // sizes[place]
