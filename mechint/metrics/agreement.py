"""How far the masks of several seeds agree, beside what chance alone would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechint.metrics.overlap import Masks
from mechint.metrics.spread import Spread


@dataclass(frozen=True)
class Agreement:
    """Agreement of S masks of one shape; all counts are of channels.

    iou: intersection over union of kept channels, over all pairs of masks; None where no mask keeps any. chance: its
    expectation for matched random masks, which keep as many channels of every layer, kind and KV head. histogram:
    [S + 1], how many channels exactly 0, 1, ..., S masks keep. chance_histogram: its expectation for matched random
    masks. All pairs at once, by the formulas of `mechint.metrics.overlap`.
    """

    iou: Spread | None
    chance: Spread | None
    histogram: tuple[int, ...]
    chance_histogram: tuple[float, ...]

    @classmethod
    def of(cls, masks: Sequence[Masks]) -> Agreement:
        """Compare masks of the same shapes, two or more, each a sequence of layers."""
        parts = [
            [head for layer in one for part in (layer.k_mask, layer.v_mask) for head in part] for one in masks
        ]
        kept = torch.stack([torch.cat(of_mask) for of_mask in parts]).double()  # [S, N]
        sizes = kept.sum(1)
        counts = torch.stack([torch.stack([head.sum() for head in of_mask]) for of_mask in parts]).double()
        widths = torch.tensor([max(1, head.numel()) for head in parts[0]])
        histogram = torch.bincount(kept.sum(0).long(), minlength=len(masks) + 1)
        expected = [
            _random_histogram((of_head / width).tolist(), int(width))
            for of_head, width in zip(counts.T, widths, strict=True)
        ]
        return cls(
            iou=_over_pairs(kept @ kept.T, sizes),
            chance=_over_pairs((counts / widths) @ counts.T, sizes),
            histogram=tuple(histogram.tolist()),
            chance_histogram=tuple(math.fsum(column) for column in zip(*expected, strict=True)),
        )


def _over_pairs(common: Tensor, sizes: Tensor) -> Spread | None:
    """Intersection over union of every pair, from (expected) intersections [S, S] and mask sizes [S]."""
    union = sizes[:, None] + sizes[None, :] - common
    first, second = torch.triu_indices(len(sizes), len(sizes), 1).unbind()
    return Spread.of((common / union)[first, second].tolist())  # 0 / 0 is left out


def _random_histogram(densities: Sequence[float], total: int) -> tuple[float, ...]:
    """Expected channels that exactly 0, 1, ..., S independent random masks of these densities keep."""
    chances = [1.0]
    for density in densities:
        without, with_ = [p * (1 - density) for p in chances], [p * density for p in chances]
        chances = [math.fsum(pair) for pair in zip([*without, 0.0], [0.0, *with_], strict=True)]
    return tuple(total * chance for chance in chances)
