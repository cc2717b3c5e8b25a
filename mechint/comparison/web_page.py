"""report.html of a comparison and of a tree of runs: tables, curves, and any two masks over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechint.comparison.comparison import METRICS, Comparison, Variant
from mechint.comparison.findings import difference_words, key_findings, needed_words, with_spread
from mechint.comparison.report import HOW_TO_READ, layer_table, seeds_in_words, summary_table
from mechint.comparison.runs import BYTES_PER_ELEMENT, NUMBERS, rows_of
from mechint.comparison.study import Study
from mechint.comparison.study_report import count_in_words
from mechint.errors import UserError
from mechint.reporting.web import page
from mechint.reporting.web.channels import Array, flat, layout
from mechint.results import RunFiles

# Masks of a study that the page holds, at one bit a channel: more would make it too large to mail.
MOST_MASK_BYTES = 2_000_000
# Steps of a run's objective that it holds: a study has hundreds of runs.
MOST_STEPS = 100


def comparison_page(comparison: Comparison) -> str:
    """The page of variants."""
    short, *sections = key_findings(comparison)
    masks = Masks()
    for variant in comparison.variants:
        masks.add(variant.name, variant.name, variant.runs, curve=variant.name)
    context = {
        "title": f"Comparison of {', '.join(variant.name for variant in comparison.variants)}",
        "comparison": comparison,
        "short": short.lines,
        "sections": [section for section in sections if section.about],
        "names": [variant.name for variant in comparison.variants],
        "others": list(comparison.differences),
        "facts": facts(comparison),
        "tables": [
            ("layers", "Layer by layer", *table_of(layer_table(comparison))),
            ("differences", "Every difference", *table_of(summary_table(comparison))),
        ],
        "how_to_read": HOW_TO_READ,
        "missing": [],
    }
    data = {
        "kind": "comparison",
        **masks.data,
        "curves": [curve(variant) for variant in comparison.variants],
    }
    return page("comparison", "comparison", context, data, masks.columns)


def study_page(study: Study) -> str:
    """The page of a tree of runs."""
    masks, missing = Masks(), []
    for directory, group in zip(study.runs["directory"], study.runs["group"], strict=True):
        try:
            run = RunFiles.read(study.root / directory)
        except UserError:  # the table says what it found; its masks are gone or damaged
            missing.append(str(directory))
            continue
        if masks.bytes + run.result.channels.total / 8 > MOST_MASK_BYTES:
            missing.append(str(directory))
            continue
        name = f"{group} · {run.result.sparsity.achieved:.4g} · seed {run.result.seed} · {directory}"
        masks.add(str(directory), name, [run], curve=str(group))
    context = {
        "title": f"Runs below {study.root}",
        "study": study,
        "count": count_in_words(study),
        "numbers": NUMBERS,
        "runs": rows_of(study.runs),
        "judged": [] if study.judged is None else rows_of(study.judged),
        "tables": [("points", "Every point of the curves", *table_of(study.points))],
        "bytes_per_element": BYTES_PER_ELEMENT,
        "missing": missing,
    }
    data = {
        "kind": "study",
        **masks.data,
        "groups": [str(group) for group in study.groups.index],
        "points": rows_of(study.points),
        "runs": rows_of(study.runs),
    }
    return page("study", "study", context, data, masks.columns)


class Masks:
    """The masks of a page: entries of one run or several, and how many runs of each keep every channel."""

    def __init__(self) -> None:
        self.layouts: list[list[dict[str, Any]]] = []
        self.entries: list[dict[str, Any]] = []
        self.columns: dict[str, Array] = {}

    def add(self, key: str, name: str, runs: Sequence[RunFiles], curve: str) -> None:
        """Add an entry; its runs have the same shape, and at most 255 of them count.

        key: what links call it. curve: the name of the page's curve that it belongs to.
        """
        runs = runs[:255]
        kept = sum(flat(run.layer_masks, "mask").astype(np.uint8) for run in runs)
        shape = layout(runs[0])
        if shape not in self.layouts:
            self.layouts.append(shape)
        column = f"kept{len(self.entries)}"
        self.columns[column] = np.asarray(kept, dtype=bool if len(runs) == 1 else np.uint8)
        self.entries.append(
            {
                "key": key,
                "name": name,
                "layout": self.layouts.index(shape),
                "column": column,
                "runs": len(runs),
                "curve": curve,
                "points": own_points(runs),
                "learning": learning(runs),
                "objectives": sorted({str(run.result.mask.objective) for run in runs}),
            }
        )

    @property
    def bytes(self) -> int:
        """What the masks take in the page's block."""
        return sum(
            -(-values.size // 8) if values.dtype == bool else values.size for values in self.columns.values()
        )

    @property
    def data(self) -> dict[str, Any]:
        """What the program needs to find them."""
        return {"layouts": self.layouts, "entries": self.entries}


def own_points(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """What was measured of the runs' own masks: fractions removed, and KL with its standard error."""
    results = [run.result for run in runs]
    return [
        {"sparsity": one.sparsity.achieved, "kl": one.metrics.masked.kl, "error": one.metrics.masked.kl_se}
        for one in results
        if one.metrics.masked.kl is not None
    ]


def learning(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """The objective over the steps: mean and range over the runs that logged a step; at most MOST_STEPS of them."""
    lines = [
        {"step": line["step"], "loss": line["loss"]}
        for run in runs
        for line in run.history
        if isinstance(line.get("loss"), (int, float)) and isinstance(line.get("step"), int)
    ]
    if not lines:
        return []
    steps = pd.DataFrame(lines).groupby("step")["loss"].agg(["mean", "min", "max", "size"]).reset_index()
    return rows_of(steps.iloc[:: max(1, -(-len(steps) // MOST_STEPS))])


def facts(comparison: Comparison) -> list[dict[str, Any]]:
    """A line for each number that variants are compared by: every variant's, and what differs from the baseline."""
    lines: list[dict[str, Any]] = [
        _line("model", comparison, lambda variant: variant.first.checkpoint.label),
        _line("runs", comparison, lambda variant: f"{len(variant.runs)} (seeds {seeds_in_words(variant)})"),
        _line(
            "units needed",
            comparison,
            lambda variant: needed_words(variant.needed) if variant.needed else "—",
        ),
    ]
    if any(variant.gates for variant in comparison.variants):
        lines.append(_line("gates", comparison, lambda variant: variant.gates or "—"))
    for metric in METRICS:
        spreads = [variant.spread(metric.name) for variant in comparison.variants]
        if not any(spreads):
            continue
        claims = [difference.metrics.get(metric.name) for difference in comparison.differences.values()]
        lines.append(
            {
                "title": f"{metric.title} [{metric.unit}]" if metric.unit else metric.title,
                "values": [(with_spread(s, metric.digits), s.mean) if s else ("—", None) for s in spreads],
                "differences": [difference_words(c, metric.digits) if c else "—" for c in claims],
            }
        )
    return lines


def _line(title: str, comparison: Comparison, words: Any) -> dict[str, Any]:
    values = [(words(variant), None) for variant in comparison.variants]
    return {"title": title, "values": values, "differences": [""] * len(comparison.differences)}


def curve(variant: Variant) -> dict[str, Any]:
    """KL against sparsity of all runs of a variant, mean and range over seeds."""
    results = [run.result for run in variant.every_run]
    table = pd.DataFrame(
        [{"sparsity": round(one.sparsity.achieved, 6), "kl": one.metrics.masked.kl} for one in results]
    )
    points = table.dropna().astype(float).groupby("sparsity")["kl"].agg(["mean", "min", "max", "size"])
    return {"name": variant.name, "points": rows_of(points.reset_index())}


def table_of(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table as plain values, None where there is none."""
    return [str(name) for name in frame], [list(row.values()) for row in rows_of(frame)]
