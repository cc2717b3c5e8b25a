"""The Markdown report of a comparison, and its tables for loggers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mechint.comparison.comparison import METRICS, Comparison, Variant
from mechint.comparison.findings import key_findings
from mechint.metrics.spread import Spread
from mechint.reporting.wording import ABSENT, code, number, percent, text

FILENAME = "variant_comparison.md"

HOW_TO_READ = (
    "**Sparsity** here is the fraction of *channels* removed, whatever the unit of the masks; K and V "
    "together unless said otherwise. Δ is variant − baseline; for sparsity in percentage points.",
    "**Loss** is the mean next-token loss in nats per token; **loss degradation** = 100 (masked − dense) / "
    "dense, each model against its own dense loss; **KL** = KL(dense || masked) in nats per token; "
    "**faithfulness**: 1 as the dense model, 0 as the empty one.",
    "**Mean and spread**: a variant with several runs shows mean ± sample standard deviation (n runs).",
    "**Differences** are given with their 95 % interval. One is called higher or lower where Welch's t test over the "
    "runs, to which the evaluation sequences add their part of the variance where both sides were measured on the same "
    "ones, has p of at most 0.05 after Holm's adjustment for everything that is tested of a variant. Below four runs a "
    "side nothing is claimed.",
    "**Importance** is scaled to [0, 1] within each run. It ranks the layers of one run; levels of "
    "different runs do not compare.",
    "**Overlap** (IoU): channels that both masks keep over channels that either keeps; expected by chance "
    "from the counts, as expected intersection over expected union: pq / (p + q − pq) for densities p and "
    "q in one pool.",
    "**Early, middle, late** are thirds of the layers.",
)


def comparison_report(comparison: Comparison, figures: Sequence[Path]) -> str:
    """variant_comparison.md, linking `figures`, which lie beside it."""
    names = ", ".join(code(variant.name) for variant in comparison.variants)
    lines = [f"# Comparison of {names}", "", f"Baseline: {code(comparison.baseline)}", ""]
    if comparison.flags:
        lines += ["> **Read this first**", *(f"> - {text(flag)}" for flag in comparison.flags), ""]
    lines += ["## Variants", "", *overview(comparison), ""]
    lines += ["## Key findings", ""]
    for section in key_findings(comparison):
        if section.lines != comparison.flags:
            lines += [f"### {text(section.title)}", "", *(f"- {text(line)}" for line in section.lines), ""]
    lines += ["## Layer by layer", "", *markdown_table(*layer_table(comparison)), ""]
    if comparison.notes:
        lines += ["## Notes", "", *(f"- {text(note)}" for note in comparison.notes), ""]
    if figures:
        lines += ["## Figures", "", *(f"![{path.stem}]({path.name})" for path in figures), ""]
    lines += ["## How to read these numbers", "", *(f"- {line}" for line in HOW_TO_READ)]
    return "\n".join(lines) + "\n"


def overview(comparison: Comparison) -> list[str]:
    """One row per fact, one column per variant."""
    columns = ["", *(variant.name for variant in comparison.variants)]
    rows: list[list[Any]] = [
        ["checkpoint", *(_names(variant, "checkpoint", "name") for variant in comparison.variants)],
        ["runs (seeds)", *(_runs(variant) for variant in comparison.variants)],
        ["mask method", *(_names(variant, "mask", "method") for variant in comparison.variants)],
        ["evaluation data", *(_names(variant, "dataset", "name") for variant in comparison.variants)],
        *(
            [label, *(percents(getattr(variant, name)) for variant in comparison.variants)]
            for label, name in (
                ("sparsity", "sparsity"),
                ("K sparsity", "k_sparsity"),
                ("V sparsity", "v_sparsity"),
            )
        ),
        *(
            [
                f"{metric.title}{f' [{metric.unit}]' if metric.unit else ''}",
                *(
                    with_spread(variant.metrics.get(metric.name), metric.digits)
                    for variant in comparison.variants
                ),
            ]
            for metric in METRICS
        ),
    ]
    return markdown_table(columns, rows)


def layer_table(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows with delta columns: one row of plain, sortable numbers per layer of the baseline.

    Where another variant has as many layers, its own columns are there; else only the deltas at equal
    relative depth.
    """
    baseline = comparison[comparison.baseline]
    columns, rows = ["layer", "name"], [[layer.index, layer.name] for layer in baseline.layers]
    for variant in comparison.variants:
        difference = comparison.differences.get(variant.name)
        if difference is None or not difference.by_depth:
            columns += [f"{variant.name} {what}" for what in ("sparsity", "K", "V", "importance", "kept")]
            for row, layer in zip(rows, variant.layers, strict=True):
                spreads = (layer.sparsity, layer.k_sparsity, layer.v_sparsity, layer.importance, layer.kept)
                row += [spread.mean for spread in spreads]
        if difference is not None:
            columns += [f"Δ {variant.name} {what}" for what in ("sparsity", "K", "V", "kept")]
            for row, delta in zip(rows, difference.layers, strict=True):
                row += [delta.sparsity, delta.k_sparsity, delta.v_sparsity, delta.kept]
    return columns, rows


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table; texts are made harmless, floats get three decimals."""
    body = [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    align = "|".join("---" if place == 0 else "---:" for place in range(len(columns)))
    return [f"| {' | '.join(text(column) for column in columns)} |", f"|{align}|", *body]


def _cell(value: object) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return number(value, 3 if abs(value) < 10 else 1)  # fractions, or counts of channels
    return str(text(value))


def with_spread(spread: Spread | None, digits: int) -> str:
    """'2.5124 ± 0.0158 (n=2)', or the number alone."""
    if spread is None:
        return ABSENT
    sd = "" if spread.sd is None else f" ± {number(spread.sd, digits)} (n={spread.n})"
    return f"{number(spread.mean, digits)}{sd}"


def percents(spread: Spread) -> str:
    """A fraction as a percentage, with the standard deviation in points."""
    sd = "" if spread.sd is None else f" ± {number(100 * spread.sd, 2)} (n={spread.n})"
    return f"{percent(spread.mean, 2)}{sd}"


def _names(variant: Variant, part: str, key: str) -> str:
    """The different values of an entry over a variant's runs."""
    found = [str(getattr(getattr(run.result, part), key) or ABSENT) for run in variant.runs]
    return ", ".join(dict.fromkeys(found))


def _runs(variant: Variant) -> str:
    seeds = [ABSENT if seed is None else str(seed) for seed in variant.seeds]
    return f"{len(variant.runs)} ({', '.join(seeds)})"
