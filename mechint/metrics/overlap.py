"""How far two masks keep the same channels, beside what chance alone would give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

from torch import Tensor

from mechint.masking.masks import LayerMask
from mechint.metrics.spread import Spread

Kinds = Literal["kv", "k", "v"]
Masks = Sequence[LayerMask]


@dataclass(frozen=True)
class Overlap:
    """Intersection over union (IoU) of kept channels, over every pair of a baseline run and a variant run.

    iou, k_iou, v_iou: measured; K and V together, K alone, V alone; None where neither mask keeps any.
    chance: expected of matched random masks, which keep as many channels of every layer, kind and KV head as
    these do. contained: the share of the smaller mask that lies in the larger. highest: the highest IoU that masks of
    these sizes can have. baseline_iou, variant_iou: measured between the runs (seeds) of one side; None for a single
    run. layers: by layer index, K and V together.
    """

    iou: Spread | None
    k_iou: Spread | None
    v_iou: Spread | None
    chance: Spread | None
    contained: Spread | None
    highest: Spread | None
    baseline_iou: Spread | None
    variant_iou: Spread | None
    layers: tuple[Spread | None, ...]


def overlap(baseline: Sequence[Masks], variant: Sequence[Masks]) -> Overlap:
    """Overlap of masks whose layers have the same shapes; a side holds the masks of its runs."""
    pairs = list(product(baseline, variant))
    depth = len(baseline[0])
    return Overlap(
        iou=Spread.of(iou(a, b) for a, b in pairs),
        k_iou=Spread.of(iou(a, b, "k") for a, b in pairs),
        v_iou=Spread.of(iou(a, b, "v") for a, b in pairs),
        chance=Spread.of(matched_chance(a, b) for a, b in pairs),
        contained=Spread.of(contained(a, b) for a, b in pairs),
        highest=Spread.of(highest_iou(a, b) for a, b in pairs),
        baseline_iou=Spread.of(iou(a, b) for a, b in combinations(baseline, 2)),
        variant_iou=Spread.of(iou(a, b) for a, b in combinations(variant, 2)),
        layers=tuple(Spread.of(iou([a[i]], [b[i]]) for a, b in pairs) for i in range(depth)),
    )


def same_shapes(a: Masks, b: Masks) -> bool:
    """Whether two masks have the same layers, KV heads and channels."""
    return [_shapes(layer) for layer in a] == [_shapes(layer) for layer in b]


def iou(a: Masks, b: Masks, kinds: Kinds = "kv") -> float | None:
    """Channels that both keep over channels that either keeps; None where neither keeps any."""
    parts = list(_parts(a, b, kinds))
    both = sum(int((x & y).sum()) for x, y in parts)
    either = sum(int((x | y).sum()) for x, y in parts)
    return both / either if either else None


def contained(a: Masks, b: Masks) -> float | None:
    """The share of the smaller mask that the larger one keeps too; None where one keeps nothing."""
    parts = list(_parts(a, b, "kv"))
    both = sum(int((x & y).sum()) for x, y in parts)
    smaller = min(sum(int(x.sum()) for x, _ in parts), sum(int(y.sum()) for _, y in parts))
    return both / smaller if smaller else None


def highest_iou(a: Masks, b: Masks) -> float | None:
    """The IoU of masks of these sizes where the smaller one lies inside the larger."""
    sizes = [sum(int(part.sum()) for part in side) for side in zip(*_parts(a, b, "kv"), strict=True)]
    return min(sizes) / max(sizes) if max(sizes) else None


def matched_chance(a: Masks, b: Masks) -> float | None:
    """Expected IoU of random masks with the counts of `a` and `b` in every layer, kind and KV head."""
    counts = [
        (int(p.sum()), int(q.sum()), p.numel())
        for x, y in _parts(a, b, "kv")
        for p, q in zip(x, y, strict=True)
    ]
    return expected_iou(counts)


def expected_iou(counts: Iterable[tuple[int, int, int]]) -> float | None:
    """Expected IoU of random sets of a and of b out of n elements, over several pools (a, b, n).

    Expected intersection over expected union: for one pool with densities p and q that is pq / (p + q - pq).
    """
    both = either = 0.0
    for a, b, n in counts:
        common = a * b / n if n else 0.0
        both, either = both + common, either + a + b - common
    return both / either if either else None


def _parts(a: Masks, b: Masks, kinds: Kinds) -> Iterable[tuple[Tensor, Tensor]]:
    for one, other in zip(a, b, strict=True):
        if "k" in kinds:
            yield one.k_mask, other.k_mask
        if "v" in kinds:
            yield one.v_mask, other.v_mask


def _shapes(layer: LayerMask) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(layer.k_mask.shape), tuple(layer.v_mask.shape)
