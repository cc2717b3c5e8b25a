"""Means over seeds, agreement between seeds, and methods compared with the default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, fsum, log
from pathlib import Path
from typing import Any

from mechint.analysis.describing import Record
from mechint.benchmark.quality.cells import KINDS
from mechint.masking.masks import LayerMask
from mechint.metrics.agreement import Agreement
from mechint.metrics.spread import Spread
from mechint.results.mask_files import load_masks

SPREADS = ("kl", "loss", "passes", "seconds", "binarization_gap")
SAME = ("kind", "dense_loss", "empty_kl", "kept", "total")


def summarise(cells: Sequence[Record], directory: Path, reference: str) -> Record:
    """`points`: one entry per model, sparsity and method, with means over seeds; `ratios` of KL per sparsity.

    Runs lie below `directory`; their masks are read for the overlap between seeds.
    """
    keys = dict.fromkeys((cell["model"], cell["sparsity"], cell["method"]) for cell in cells)
    points = []
    for model, sparsity, method in keys:
        runs = [c for c in cells if (c["model"], c["sparsity"], c["method"]) == (model, sparsity, method)]
        points.append(
            {
                "model": model,
                "sparsity": sparsity,
                "method": method,
                "seeds": len(runs),
                **{name: runs[0][name] for name in SAME},
                **{name: _spread(run[name] for run in runs) for name in SPREADS},
                **_agreement([directory / run["directory"] for run in runs]),
            }
        )
    sparsities = sorted({point["sparsity"] for point in points})
    return {"points": points, "ratios": [_ratios(points, sparsity, reference) for sparsity in sparsities]}


def _spread(values: Iterable[float | None]) -> Record | None:
    spread = Spread.of(values)
    return None if spread is None else {"mean": spread.mean, "low": spread.low, "high": spread.high}


def _agreement(directories: Sequence[Path]) -> Record:
    """Mean IoU of kept channels over all pairs of seeds, and that of matched random masks."""
    if len(directories) < 2:
        return {"iou": None, "iou_chance": None}
    found = Agreement.of([_layers(directory) for directory in directories])
    return {"iou": found.iou and found.iou.mean, "iou_chance": found.chance and found.chance.mean}


def _layers(directory: Path) -> list[LayerMask]:
    return list(load_masks(directory / "final_masks.safetensors").values())


def _ratios(points: Sequence[Record], sparsity: float, reference: str) -> Record:
    """KL relative to the reference's, as geometric means over the models that have both."""
    here = [point for point in points if point["sparsity"] == sparsity]
    kl = {(point["model"], point["method"]): point["kl"]["mean"] for point in here if point["kl"]}
    kinds = {point["method"]: point["kind"] for point in here}
    models = [model for model, method in kl if method == reference]
    methods: Record = {}
    for method in kinds:
        found = [
            kl[m, method] / kl[m, reference] for m in models if (m, method) in kl and kl[m, reference] > 0
        ]
        methods[method] = {"ratio": _geometric_mean(found), "models": len(found)}
    return {"sparsity": sparsity, "methods": methods, "best": _best(kl, kinds, methods, models, reference)}


def _best(
    kl: dict[tuple[str, str], float],
    kinds: dict[str, str],
    methods: Record,
    models: Sequence[str],
    reference: str,
) -> Record:
    """The reference's KL relative to the best method of every other kind.

    ratio: against the one method that is best by its geometric mean over all models. ratio_per_model: against whichever
    is best on each model, which is harder to beat.
    """
    best: Record = {}
    for kind in KINDS[1:]:
        everywhere = {
            name: entry["ratio"]
            for name, entry in methods.items()
            if kinds[name] == kind and entry["ratio"] and entry["models"] == len(models)
        }
        if not everywhere:
            continue
        name = min(everywhere, key=lambda method: everywhere[method])
        lowest = [min(kl[model, method] for method in everywhere) for model in models]
        ratios = [kl[model, reference] / low for model, low in zip(models, lowest, strict=True) if low > 0]
        best[kind] = {
            "method": name,
            "ratio": 1 / everywhere[name],
            "ratio_per_model": _geometric_mean(ratios),
        }
    return best


def _geometric_mean(values: Sequence[float]) -> float | None:
    """None where there is no value, or one that has no logarithm."""
    if not values or min(values) <= 0:
        return None
    return exp(fsum(log(value) for value in values) / len(values))


def ordered(points: Sequence[Any]) -> list[Any]:
    """Points by model, sparsity, kind and mean KL: the order of the tables."""
    models = list(dict.fromkeys(point["model"] for point in points))
    return sorted(
        points,
        key=lambda p: (models.index(p["model"]), p["sparsity"], KINDS.index(p["kind"]), p["kl"]["mean"]),
    )
