"""How far the masks of several seeds agree, beside what chance alone would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from mechint.comparison.overlap import Masks, chance_by_layer, chance_overall, iou
from mechint.comparison.spread import Spread


@dataclass(frozen=True)
class Agreement:
    """Agreement of S masks of one shape; all counts are of channels.

    iou: intersection over union of kept channels, over all pairs of masks; None where no mask keeps any. chance: its
    expectation for random masks of the same counts. chance_layers: for random masks that also keep as many K and V
    channels of every layer. histogram: [S + 1], how many channels exactly 0, 1, ..., S masks keep. chance_histogram:
    its expectation for random masks of the same counts.
    """

    iou: Spread | None
    chance: Spread | None
    chance_layers: Spread | None
    histogram: tuple[int, ...]
    chance_histogram: tuple[float, ...]

    @classmethod
    def of(cls, masks: Sequence[Masks]) -> Agreement:
        """Compare masks of the same shapes, two or more, each a sequence of layers."""
        pairs = list(combinations(masks, 2))
        flat = torch.stack(
            [torch.cat([m.flatten() for layer in one for m in (layer.k_mask, layer.v_mask)]) for one in masks]
        )
        kept = flat.sum(0)
        return cls(
            iou=Spread.of(iou(a, b) for a, b in pairs),
            chance=Spread.of(chance_overall(a, b) for a, b in pairs),
            chance_layers=Spread.of(chance_by_layer(a, b) for a, b in pairs),
            histogram=tuple(torch.bincount(kept, minlength=len(masks) + 1).tolist()),
            chance_histogram=_random_histogram(flat.float().mean(1).tolist(), flat.shape[1]),
        )


def _random_histogram(densities: Sequence[float], total: int) -> tuple[float, ...]:
    """Expected channels that exactly 0, 1, ..., S independent random masks of these densities keep."""
    chances = [1.0]
    for density in densities:
        without, with_ = [p * (1 - density) for p in chances], [p * density for p in chances]
        chances = [math.fsum(pair) for pair in zip([*without, 0.0], [0.0, *with_], strict=True)]
    return tuple(total * chance for chance in chances)
