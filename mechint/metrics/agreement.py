"""How far the masks of several seeds agree, beside what chance alone would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechint.metrics.overlap import Masks, Pairs
from mechint.metrics.spread import Spread


@dataclass(frozen=True)
class Agreement:
    """Agreement of S masks of one shape; all counts are of channels.

    iou: intersection over union of kept channels, over all pairs of masks; None where no mask keeps any. chance: its
    expectation for matched random masks, which keep as many channels of every layer, kind and KV head, or as many of
    every layer and kind where all masks keep heads whole. histogram:
    [S + 1], how many channels exactly 0, 1, ..., S masks keep. chance_histogram: its expectation for matched random
    masks.
    """

    iou: Spread | None
    chance: Spread | None
    histogram: tuple[int, ...]
    chance_histogram: tuple[float, ...]

    @classmethod
    def of(cls, masks: Sequence[Masks]) -> Agreement:
        """Compare masks of the same shapes, two or more, each a sequence of layers."""
        parts = [
            [head for layer in one for part in (layer.k_mask, layer.v_mask) for head in part.cpu().numpy()]
            for one in masks
        ]
        kept = np.stack([np.concatenate(of_mask) for of_mask in parts])  # [S, N]
        widths = np.array([len(head) for head in parts[0]])
        places = np.arange(len(widths))
        if all(head.all() or not head.any() for of_mask in parts for head in of_mask):
            # whole heads were chosen: inside of a head nothing is left to chance
            heads = [part.shape[0] for layer in masks[0] for part in (layer.k_mask, layer.v_mask)]
            places = np.repeat(np.arange(len(heads)), heads)
        found = Pairs.of(kept, np.repeat(places, widths))
        upper = np.triu_indices(len(masks), 1)
        histogram = np.bincount(kept.sum(0), minlength=len(masks) + 1)
        of_channel = np.repeat(places, widths)
        totals = np.bincount(of_channel)
        counts = np.stack([np.bincount(of_channel, one) for one in kept])  # [S, places]
        densities = counts / np.maximum(totals, 1)
        expected = [
            _random_histogram(of_place.tolist(), int(total))
            for of_place, total in zip(densities.T, totals, strict=True)
        ]
        return cls(
            iou=Spread.of(found.iou[upper].tolist()),
            chance=Spread.of(found.chance[upper].tolist()),
            histogram=tuple(histogram.tolist()),
            chance_histogram=tuple(math.fsum(column) for column in zip(*expected, strict=True)),
        )


def _random_histogram(densities: Sequence[float], total: int) -> tuple[float, ...]:
    """Expected channels that exactly 0, 1, ..., S independent random masks of these densities keep."""
    chances = [1.0]
    for density in densities:
        without, with_ = [p * (1 - density) for p in chances], [p * density for p in chances]
        chances = [math.fsum(pair) for pair in zip([*without, 0.0], [0.0, *with_], strict=True)]
    return tuple(total * chance for chance in chances)
