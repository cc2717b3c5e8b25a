"""One variant against the baseline: numbers, layers, thirds of the layers, overlap of the masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mechint.comparison.comparison import (
    METRICS,
    Difference,
    Metric,
    MetricDifference,
    PlaceDelta,
    Variant,
    VariantLayer,
    Verdict,
)
from mechint.masking.masks import LayerMask
from mechint.metrics.overlap import Overlap, overlap, same_shapes
from mechint.metrics.spread import Spread
from mechint.reporting.wording import layers_named

THIRDS = ("early", "middle", "late")

# Layers of a variant with the weights, > 0, with which they count at one place.
Place = Sequence[tuple[VariantLayer, int]]


def differ(baseline: Variant, variant: Variant) -> Difference:
    """Everything that tells `variant` from `baseline`, as variant - baseline."""
    matched, why = _overlap(baseline, variant)
    same = [_shape(layer) for layer in baseline.layers] == [_shape(layer) for layer in variant.layers]
    return Difference(
        variant=variant.name,
        metrics={
            metric.name: _metric(metric, baseline, variant)
            for metric in METRICS
            if metric.name in baseline.metrics and metric.name in variant.metrics
        },
        layers=tuple(
            _delta(
                f"layer {layer.index}",
                layer.depth,
                [(layer, 1)],
                _stretch(variant, position, len(baseline.layers)),
                same,
            )
            for position, layer in enumerate(baseline.layers)
        ),
        thirds=_thirds(baseline, variant, same),
        overlap=matched,
        no_overlap=why,
        by_depth=len(baseline.layers) != len(variant.layers),
    )


def verdict(baseline: Spread, variant: Spread) -> Verdict:
    """Whether the ranges of two sides, each over at least two seeds, lie apart."""
    if min(baseline.n, variant.n) < 2:
        return "unknown"
    return "within" if baseline.overlaps(variant) else "exceeds"


def chance_of_exceeding(n: int, m: int) -> float:
    """How often n and m draws from one distribution lie wholly apart: 2 of (n+m choose n) orders do."""
    return 2 / math.comb(n + m, n)


def _metric(metric: Metric, baseline: Variant, variant: Variant) -> MetricDifference:
    a, b = baseline.metrics[metric.name], variant.metrics[metric.name]
    return MetricDifference(metric, a, b, verdict(a, b) if metric.seeded else "unknown")


def _stretch(variant: Variant, position: int, places: int) -> Place:
    """The layers of `variant` over the stretch of relative depth that is place `position` of `places`.

    Layer i of L covers [i / L, (i + 1) / L]; the weight is the length in common, in units of 1 / (L places).
    """
    depth = len(variant.layers)
    parts = []
    for i, layer in enumerate(variant.layers):
        common = min((i + 1) * places, (position + 1) * depth) - max(i * places, position * depth)
        if common > 0:
            parts.append((layer, common))
    return parts


def _thirds(baseline: Variant, variant: Variant, same: bool) -> tuple[PlaceDelta, ...]:
    if min(len(baseline.layers), len(variant.layers)) < len(THIRDS):
        return ()
    deltas = []
    for number, name in enumerate(THIRDS):
        ours, theirs = _third(baseline, number), _third(variant, number)
        named = layers_named([layer.index for layer, _ in ours])
        title = f"{name} {named if len(baseline.layers) == len(variant.layers) else 'layers'}"
        middle = sum(layer.depth for layer, _ in ours) / len(ours)
        deltas.append(_delta(title, middle, ours, theirs, same))
    return tuple(deltas)


def _third(variant: Variant, number: int) -> Place:
    depth = len(variant.layers)
    return [(layer, 1) for place, layer in enumerate(variant.layers) if place * 3 // depth == number]


def _delta(title: str, depth: float, baseline: Place, variant: Place, same_shape: bool) -> PlaceDelta:
    sides = [
        (_removed(place, "kv"), _removed(place, "k"), _removed(place, "v")) for place in (baseline, variant)
    ]
    both, k, v = ((b.mean - a.mean) for a, b in zip(*sides, strict=True))
    return PlaceDelta(
        title=title,
        depth=depth,
        sparsity=both,
        k_sparsity=k,
        v_sparsity=v,
        importance=_importance(variant) - _importance(baseline),
        kept=sum(layer.kept.mean for layer, _ in variant) - sum(layer.kept.mean for layer, _ in baseline)
        if same_shape
        else None,
        verdict=verdict(sides[0][0], sides[1][0]),
    )


def _removed(place: Place, kinds: str) -> Spread:
    """Fraction of channels removed at a place, for each run; layers count by their channels and weights."""

    def kept(layer: VariantLayer, run: int) -> float:
        return sum(getattr(layer, f"{kind}_kept").values[run] for kind in kinds)

    total = sum(weight * sum(getattr(layer, f"{kind}_total") for kind in kinds) for layer, weight in place)
    runs = range(place[0][0].kept.n)
    return Spread(
        tuple(1 - sum(weight * kept(layer, run) for layer, weight in place) / total for run in runs)
    )


def _importance(place: Place) -> float:
    total = sum(weight * layer.total for layer, weight in place)
    return sum(weight * layer.total * layer.importance.mean for layer, weight in place) / total


def _overlap(baseline: Variant, variant: Variant) -> tuple[Overlap | None, str]:
    """The overlap of two variants' masks, or why there is none."""
    ours, theirs = masks_of(baseline), masks_of(variant)
    if not same_shapes(ours[0], theirs[0]):
        return None, "their layers, KV heads or channels differ in number, so channels cannot be matched"
    return overlap(ours, theirs), ""


def masks_of(variant: Variant) -> list[list[LayerMask]]:
    """The masks of each run, by layer index."""
    return [run.layer_masks for run in variant.runs]


def _shape(layer: VariantLayer) -> tuple[int, int]:
    return layer.k_total, layer.v_total
