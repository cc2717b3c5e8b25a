"""How far masks keep the same channels, beside what chance alone would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mechint.masking.masks import LayerMask
from mechint.metrics.spread import Spread

if TYPE_CHECKING:
    import pandas as pd

Masks = Sequence[LayerMask]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Every pair of R masks; all [R, R], NaN where there is no number.

    iou: channels that both keep over channels that either keeps; NaN where neither keeps any. chance: its expectation
    for matched random masks, which keep as many channels of every layer, kind and KV head: expected intersection over
    expected union. contained: the share of the smaller mask that lies in the larger. highest: the highest IoU that
    masks of these sizes can have.
    """

    iou: Values
    chance: Values
    contained: Values
    highest: Values

    @classmethod
    def of(cls, kept: NDArray[np.bool_], head: NDArray[np.int64]) -> Pairs:
        """kept: [R, N], which channels a mask keeps. head: [N], number of a channel's layer, kind and KV head."""
        masks = kept.astype(np.float64)
        widths = np.bincount(head)
        counts = np.stack(
            [np.bincount(head, weights=mask, minlength=len(widths)) for mask in masks]
        )  # [R, H]
        sizes = masks.sum(1)
        both, expected = masks @ masks.T, (counts / np.maximum(widths, 1)) @ counts.T
        sums = np.add.outer(sizes, sizes)
        smaller, larger = np.minimum.outer(sizes, sizes), np.maximum.outer(sizes, sizes)
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(both / (sums - both), expected / (sums - expected), both / smaller, smaller / larger)


@dataclass(frozen=True)
class Overlap:
    """How far the masks of a variant's runs keep the channels that a baseline's runs keep, over every pair of runs.

    iou, k_iou, v_iou: K and V together, K alone, V alone. chance, contained, highest: as in Pairs. baseline_iou,
    variant_iou: between the runs (seeds) of one side. layers: IoU by layer index, K and V together. None where there is
    no number: no mask keeps any channel, or a side has a single run.
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


def overlap(baseline: pd.DataFrame, variant: pd.DataFrame) -> Overlap:
    """Overlap of two tables of kept channels, bool: rows by (layer, kind, head, channel), a column for each run."""
    index, ours = baseline.index, baseline.shape[1]
    kept = np.concatenate([baseline.to_numpy().T, variant.to_numpy().T])
    head = baseline.groupby(level=["layer", "kind", "head"], sort=False).ngroup().to_numpy()
    kind, layer = index.get_level_values("kind"), index.get_level_values("layer")

    def across(values: Values) -> Spread | None:
        return Spread.of(values[:ours, ours:].flatten().tolist())

    def within(values: Values) -> Spread | None:
        return Spread.of(values[np.triu_indices(len(values), 1)].tolist())

    def iou(rows: Any) -> Spread | None:
        return across(Pairs.of(kept[:, rows], head[rows]).iou)

    found = Pairs.of(kept, head)
    return Overlap(
        iou=across(found.iou),
        k_iou=iou(kind == "k"),
        v_iou=iou(kind == "v"),
        chance=across(found.chance),
        contained=across(found.contained),
        highest=across(found.highest),
        baseline_iou=within(found.iou[:ours, :ours]),
        variant_iou=within(found.iou[ours:, ours:]),
        layers=tuple(iou(layer == number) for number in layer.unique()),
    )
