"""comparison.json: what a comparison or a study found, for other programs.

Variants: {schema_version, kind "variants", created, not_logged, baseline, comparable_loss, flags, notes,
variants{name: {runs[directory], seeds, checkpoints[{name sha256}], metrics{name: SPREAD}, sparsity SPREAD,
k_sparsity, v_sparsity, quoted, layers[{index name depth sparsity SPREAD ... k_total v_total}]}},
differences{name: {metrics{name: {difference interval p paired verdict better}}, layers[{title depth sparsity ...
verdict}], thirds, overlap{iou k_iou v_iou chance contained highest baseline_iou variant_iou layers}, no_overlap,
by_depth}}}.

Tree: {schema_version, kind "tree", created, not_logged, root, bytes_per_element, flags, notes, groups[{label
checkpoint method dense_loss empty_loss dense_kv_bytes_per_token points[{sparsity target kv_bytes_per_token
loss SPREAD loss_degradation_percent kl faithfulness agreement{iou SPREAD chance histogram
chance_histogram} runs[...]}]}], unfinished[{directory status reason}]}.

SPREAD is {mean, sd, n, values}, or null where there is no number; sd is null for a single run. Sparsities are
fractions: of channels for variants, of units for a tree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mechint.analysis.describing import now
from mechint.comparison.comparison import Comparison, MetricDifference, Variant
from mechint.comparison.study import BYTES_PER_ELEMENT, Study, StudyGroup, StudyPoint
from mechint.metrics.spread import Spread

FILENAME = "comparison.json"
SCHEMA_VERSION = 1

# Numbers of a point of a study.
POINT_METRICS = ("loss", "loss_degradation_percent", "kl", "faithfulness")


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """The content of comparison.json for variants."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "variants",
        "created": now(),
        "baseline": comparison.baseline,
        "comparable_loss": comparison.comparable_loss,
        "flags": list(comparison.flags),
        "notes": list(comparison.notes),
        "variants": {variant.name: _variant(variant) for variant in comparison.variants},
        "differences": {name: as_plain(difference) for name, difference in comparison.differences.items()},
    }


def study_record(study: Study) -> dict[str, Any]:
    """The content of comparison.json for a tree."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "tree",
        "created": now(),
        "root": str(study.root),
        "bytes_per_element": BYTES_PER_ELEMENT,
        "flags": list(study.flags),
        "notes": list(study.notes),
        "groups": [_group(group) for group in study.groups],
        "unfinished": as_plain(study.unfinished),
    }


def as_plain(value: Any) -> Any:
    """Dataclasses, spreads and tuples as dictionaries and lists."""
    if isinstance(value, Spread):
        return value.as_record()
    if isinstance(value, MetricDifference):
        return {
            "difference": value.difference,
            "interval": [value.effect.low, value.effect.high],
            "p": value.p,
            "paired": value.effect.paired,
            "verdict": value.verdict,
            "better": value.metric.better,
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _variant(variant: Variant) -> dict[str, Any]:
    checkpoints = [
        {key: getattr(run.result.checkpoint, key) for key in ("name", "sha256")} for run in variant.runs
    ]
    return {
        "runs": [str(run.directory) for run in variant.runs],
        "seeds": list(variant.seeds),
        "checkpoints": list({str(entry): entry for entry in checkpoints}.values()),
        "metrics": as_plain(variant.metrics),
        "sparsity": as_plain(variant.sparsity),
        "k_sparsity": as_plain(variant.k_sparsity),
        "v_sparsity": as_plain(variant.v_sparsity),
        "quoted": list(variant.quoted),
        "layers": as_plain(variant.layers),
    }


def _group(group: StudyGroup) -> dict[str, Any]:
    content: dict[str, Any] = as_plain(dataclasses.replace(group, points=()))
    return content | {"points": [_point(point) for point in group.points]}


def _point(point: StudyPoint) -> dict[str, Any]:
    spreads = {name: as_plain(point.spread(name)) for name in POINT_METRICS}
    return {
        "sparsity": point.sparsity,
        "target": point.target,
        "kv_bytes_per_token": point.kv_bytes_per_token,
        **spreads,
        "agreement": as_plain(point.agreement),
        "runs": as_plain(point.runs),
    }
