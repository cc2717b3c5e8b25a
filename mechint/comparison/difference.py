"""One variant against the baseline: numbers, layers, thirds of the layers, overlap of the masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mechint.comparison.comparison import (
    METRICS,
    Difference,
    Metric,
    MetricDifference,
    PlaceDelta,
    Variant,
    VariantLayer,
)
from mechint.masking.masks import LayerMask
from mechint.metrics.overlap import Overlap, overlap, same_shapes
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import Effect, Verdict, adjusted, compare_means
from mechint.reporting.wording import layers_named
from mechint.results.sequences import load_sequences

THIRDS = ("early", "middle", "late")

# Layers of a variant with the weights, > 0, with which they count at one place.
Place = Sequence[tuple[VariantLayer, int]]


def differ(baseline: Variant, variant: Variant) -> Difference:
    """Everything that tells `variant` from `baseline`, as variant - baseline.

    All tests of one variant are adjusted together, so that at most 5 % of comparisons without any real difference claim
    one.
    """
    matched, why = _overlap(baseline, variant)
    same = [_shape(layer) for layer in baseline.layers] == [_shape(layer) for layer in variant.layers]
    metrics = [
        metric for metric in METRICS if metric.name in baseline.metrics and metric.name in variant.metrics
    ]
    places = [
        ([(layer, 1)], _stretch(variant, position, len(baseline.layers)))
        for position, layer in enumerate(baseline.layers)
    ]
    thirds = _thirds(baseline, variant)
    effects = [_effect_of_metric(metric, baseline, variant) for metric in metrics]
    of_places = [_effect_of_place(ours, theirs) for ours, theirs in [*places, *(pair for _, *pair in thirds)]]
    kinds = {
        "k": compare_means(baseline.k_sparsity.values, variant.k_sparsity.values),
        "v": compare_means(baseline.v_sparsity.values, variant.v_sparsity.values),
    }
    claims = [
        *(e if metric.seeded else None for metric, e in zip(metrics, effects, strict=True)),
        *of_places,
        *kinds.values(),
    ]
    p_values = adjusted(None if effect is None else effect.p for effect in claims)
    of_metrics, rest = p_values[: len(metrics)], p_values[len(metrics) :]
    deltas = [
        _delta(title, depth, ours, theirs, same, effect, effect.verdict(p))
        for (title, depth, ours, theirs), effect, p in zip(
            [
                *(
                    (f"layer {layer.index}", layer.depth, *pair)
                    for layer, pair in zip(baseline.layers, places, strict=True)
                ),
                *((title, _middle(ours), ours, theirs) for title, ours, theirs in thirds),
            ],
            of_places,
            rest[: len(of_places)],
            strict=True,
        )
    ]
    return Difference(
        variant=variant.name,
        metrics={
            metric.name: MetricDifference(
                metric,
                baseline.metrics[metric.name],
                variant.metrics[metric.name],
                effect,
                p,
                effect.verdict(p) if metric.seeded else "not tested",
            )
            for metric, effect, p in zip(metrics, effects, of_metrics, strict=True)
        },
        layers=tuple(deltas[: len(places)]),
        thirds=tuple(deltas[len(places) :]),
        overlap=matched,
        no_overlap=why,
        by_depth=len(baseline.layers) != len(variant.layers),
        kinds={
            kind: effect.verdict(p)
            for (kind, effect), p in zip(kinds.items(), rest[len(of_places) :], strict=True)
        },
    )


def _effect_of_metric(metric: Metric, baseline: Variant, variant: Variant) -> Effect:
    """Of one number; where both sides were measured on the same sequences, these count as well as the seeds."""
    ours, theirs = baseline.metrics[metric.name], variant.metrics[metric.name]
    pair = None
    if metric.seeded and len(_digests(baseline) | _digests(variant)) == 1:
        a, b = by_sequence(baseline, metric.name), by_sequence(variant, metric.name)
        if a is not None and b is not None and a.shape[1] == b.shape[1]:
            pair = a, b
    return compare_means(ours.values, theirs.values, pair)


def _digests(variant: Variant) -> set[str | None]:
    return {run.result.dataset.evaluation_digest for run in variant.runs}


def by_sequence(variant: Variant, name: str) -> np.ndarray | None:
    """What every run gives on every evaluation sequence, [runs, M], so that its mean over sequences is about the
    number; None where a run did not keep it.
    """
    rows = []
    for run in variant.runs:
        kept = load_sequences(run.directory)
        if kept is None:
            return None
        dense, empty, masked = (kept["loss"][number].numpy() for number in range(3))
        values = {
            "loss": masked,
            "kl": kept["kl"][2].numpy(),
            "top1_agreement": kept["top1_agreement"][2].numpy(),
            "loss_degradation_percent": 100 * (masked - dense) / dense.mean(),
            "faithfulness": (empty - masked) / ((empty - dense).mean() or np.nan),
        }
        rows.append(values[name])
    if len({len(row) for row in rows}) > 1:
        return None
    stacked = np.stack(rows)
    return stacked if bool(np.isfinite(stacked).all()) else None


def _effect_of_place(baseline: Place, variant: Place) -> Effect:
    return compare_means(_removed(baseline, "kv").values, _removed(variant, "kv").values)


def _middle(place: Place) -> float:
    return sum(layer.depth for layer, _ in place) / len(place)


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


def _thirds(baseline: Variant, variant: Variant) -> list[tuple[str, Place, Place]]:
    """Early, middle and late layers of both sides; none for fewer than three layers."""
    if min(len(baseline.layers), len(variant.layers)) < len(THIRDS):
        return []
    found = []
    for number, name in enumerate(THIRDS):
        ours, theirs = _third(baseline, number), _third(variant, number)
        named = layers_named([layer.index for layer, _ in ours])
        title = f"{name} {named if len(baseline.layers) == len(variant.layers) else 'layers'}"
        found.append((title, ours, theirs))
    return found


def _third(variant: Variant, number: int) -> Place:
    depth = len(variant.layers)
    return [(layer, 1) for place, layer in enumerate(variant.layers) if place * 3 // depth == number]


def _delta(
    title: str,
    depth: float,
    baseline: Place,
    variant: Place,
    same_shape: bool,
    effect: Effect,
    verdict: Verdict,
) -> PlaceDelta:
    k, v = (_removed(variant, kind).mean - _removed(baseline, kind).mean for kind in ("k", "v"))
    return PlaceDelta(
        title=title,
        depth=depth,
        sparsity=effect.difference,
        k_sparsity=k,
        v_sparsity=v,
        kept=sum(layer.kept.mean for layer, _ in variant) - sum(layer.kept.mean for layer, _ in baseline)
        if same_shape
        else None,
        effect=effect,
        verdict=verdict,
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
