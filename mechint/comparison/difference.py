"""One variant against the baseline: numbers, layers, thirds of the layers, overlap of the masks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from mechint.comparison.comparison import KINDS, METRICS, Claim, Difference, Kind, Metric, Place, Variant
from mechint.metrics.evaluation import families_among, family_means
from mechint.metrics.overlap import Overlap, overlap
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import adjusted, compare_means
from mechint.reporting.wording import layers_named
from mechint.results.mask_files import BASIS
from mechint.results.sequences import load_sequences

THIRDS = ("early", "middle", "late")
NEEDED = "units_needed"

# Layers of one side, by index, with the weights, > 0, with which they count at one place; None: all layers.
Weights = Mapping[int, float] | None


def differ(baseline: Variant, variant: Variant) -> Difference:
    """Everything that tells `variant` from `baseline`, as variant - baseline.

    All tests of one variant are adjusted together, so that at most 5 % of comparisons without any real difference claim
    one.
    """
    metrics = {
        metric.name: claim for metric in METRICS if (claim := _metric_claim(metric, baseline, variant))
    }
    ours, theirs = baseline.needed, variant.needed
    if ours and theirs and ours.target == theirs.target and not (ours.bound or theirs.bound):
        metrics[NEEDED] = _claim(ours.share, theirs.share)
    layers = [
        (f"layer {index}", {index: 1.0}, _stretch(variant, position, len(baseline.indices)))
        for position, index in enumerate(baseline.indices)
    ]
    thirds = _thirds(baseline, variant)
    places = [_place(baseline, variant, *place) for place in [("all layers", None, None), *layers, *thirds]]
    unseeded = {metric.name for metric in METRICS if not metric.seeded}
    tested: list[Claim] = [claim for name, claim in metrics.items() if name not in unseeded]
    tested += [place.claim for place in places[1:]] + [places[0].sparsity["k"], places[0].sparsity["v"]]
    p_values = adjusted(claim.effect.p for claim in tested)
    settled = {
        id(claim): replace(claim, p=p, verdict=claim.effect.verdict(p))
        for claim, p in zip(tested, p_values, strict=True)
    }
    whole, *rest = [
        replace(place, sparsity={kind: settled.get(id(c), c) for kind, c in place.sparsity.items()})
        for place in places
    ]
    matched, why = _overlap(baseline, variant)
    return Difference(
        variant=variant.name,
        metrics={name: settled.get(id(claim), claim) for name, claim in metrics.items()},
        whole=whole,
        layers=tuple(rest[: len(layers)]),
        thirds=tuple(rest[len(layers) :]),
        overlap=matched,
        no_overlap=why,
        by_depth=len(baseline.indices) != len(variant.indices),
    )


def _claim(
    baseline: Spread,
    variant: Spread,
    by_sequence: tuple[np.ndarray, np.ndarray] | None = None,
    errors: tuple[float | None, float | None] = (None, None),
) -> Claim:
    """A difference before it is tested. errors: of both sides, from their evaluation data, for single runs."""
    effect = compare_means(baseline.values, variant.values, by_sequence)
    error = effect.error
    if error is None and errors[0] is not None and errors[1] is not None:
        error = math.hypot(errors[0], errors[1])
    return Claim(baseline, variant, effect, error)


def _metric_claim(metric: Metric, baseline: Variant, variant: Variant) -> Claim | None:
    """Of one number; where both sides were measured on the same sequences, these count as well as the seeds."""
    ours, theirs = baseline.spread(metric.name), variant.spread(metric.name)
    if ours is None or theirs is None:
        return None
    pair = None
    digests = {*baseline.numbers["evaluation_digest"], *variant.numbers["evaluation_digest"]}
    if len(digests) == 1:
        a, b = by_sequence(baseline, metric.name), by_sequence(variant, metric.name)
        if a is not None and b is not None and a.shape[1] == b.shape[1]:
            pair = a, b
    return _claim(ours, theirs, pair, (baseline.error(metric.name), variant.error(metric.name)))


def by_sequence(variant: Variant, name: str) -> np.ndarray | None:
    """What every run gives on every evaluation sequence, or every family of prompts, [runs, M], so that its mean over
    sequences is about the number; None where a run did not keep it.
    """
    rows = []
    for run in variant.runs:
        kept = load_sequences(run.directory)
        if kept is None:
            return None
        dense, empty, masked = (kept["loss"][number].numpy() for number in range(3))
        values = {
            "loss": masked,
            "dense_loss": dense,
            "kl": kept["kl"][2].numpy(),
            "top1_agreement": kept["top1_agreement"][2].numpy(),
            "loss_degradation_percent": 100 * (masked - dense) / dense.mean(),
            "faithfulness": (empty - masked) / ((empty - dense).mean() or np.nan),
        }
        if name not in values:
            return None
        families = families_among(kept.get("documents"), kept["positions"])
        rows.append(family_means(torch.from_numpy(values[name]), families).numpy())
    if len({len(row) for row in rows}) > 1:
        return None
    stacked = np.stack(rows)
    return stacked if bool(np.isfinite(stacked).all()) else None


def _place(baseline: Variant, variant: Variant, title: str, ours: Weights, theirs: Weights) -> Place:
    claims: dict[Kind, Claim] = {
        kind: _claim(baseline.sparsity(kind, ours), variant.sparsity(kind, theirs)) for kind in KINDS
    }
    kept = None
    totals = [[side.counts[kind][1][:, 0].tolist() for kind in KINDS] for side in (baseline, variant)]
    if totals[0] == totals[1]:
        ours_kept, theirs_kept = (
            float(((side.weights(layers) > 0) @ side.counts["kv"][0]).mean())
            for side, layers in ((baseline, ours), (variant, theirs))
        )
        kept = theirs_kept - ours_kept
    return Place(title, claims, kept)


def _stretch(variant: Variant, position: int, places: int) -> dict[int, float]:
    """The layers of `variant` over the stretch of relative depth that is place `position` of `places`.

    Layer i of L covers [i / L, (i + 1) / L]; the weight is the length in common, in units of 1 / (L places).
    """
    depth = len(variant.indices)
    common = {
        index: min((i + 1) * places, (position + 1) * depth) - max(i * places, position * depth)
        for i, index in enumerate(variant.indices)
    }
    return {index: float(length) for index, length in common.items() if length > 0}


def _thirds(baseline: Variant, variant: Variant) -> list[tuple[str, dict[int, float], dict[int, float]]]:
    """Early, middle and late layers of both sides; none for fewer than three layers."""
    if min(len(baseline.indices), len(variant.indices)) < len(THIRDS):
        return []
    same = len(baseline.indices) == len(variant.indices)
    found = []
    for number, name in enumerate(THIRDS):
        ours, theirs = (
            {
                index: 1.0
                for place, index in enumerate(side.indices)
                if place * 3 // len(side.indices) == number
            }
            for side in (baseline, variant)
        )
        found.append((f"{name} {layers_named(list(ours)) if same else 'layers'}", ours, theirs))
    return found


def _overlap(baseline: Variant, variant: Variant) -> tuple[Overlap | None, str]:
    """The overlap of two variants' masks, or why there is none."""
    if not baseline.kept.index.equals(variant.kept.index):
        return None, "their layers, KV heads or channels differ in number, so channels cannot be matched"
    bases = {
        (name, hashlib.sha256(path.read_bytes()).digest() if path.exists() else b"")
        for side in (baseline, variant)
        for name, run in zip(side.numbers["basis"], side.runs, strict=True)
        for path in [run.directory / BASIS]
    }
    if len(bases) > 1:
        return (
            None,
            "their units are directions of different bases, so equal numbers are not the same direction",
        )
    return overlap(baseline.kept, variant.kept), ""
