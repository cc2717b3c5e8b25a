"""The Markdown report of a comparison, and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechint.comparison.comparison import METRICS, Claim, Comparison, Kind, Variant
from mechint.comparison.findings import key_findings, needed_words, with_spread
from mechint.metrics.spread import Spread
from mechint.reporting.wording import ABSENT, code, number, percent, text

FILENAME, SUMMARY = "variant_comparison.md", "summary.csv"

HOW_TO_READ = (
    "**Sparsity** here is the fraction of *channels* removed, whatever the unit of the masks; K and V "
    "together unless said otherwise. Δ is variant − baseline; for sparsity in percentage points.",
    "**Loss** is the mean next-token loss in nats per token; **loss degradation** = 100 (masked − dense) / "
    "dense, each model against its own dense loss; **KL** = KL(dense || masked) in nats per token; "
    "**faithfulness**: 1 as the dense model, 0 as the empty one.",
    "**Mean and spread**: a variant with several runs shows mean ± sample standard deviation. **SE of the "
    "data**: the standard error that the choice of evaluation sequences gives a run's number, by the bootstrap.",
    "**Differences** are given with their 95 % interval. One is called higher or lower where Welch's t test over the "
    "runs, to which the evaluation sequences add their part of the variance where both sides were measured on the same "
    "ones, has p of at most 0.05 after Holm's adjustment for everything that is tested of a variant. Below four runs a "
    f"side nothing is claimed. {SUMMARY} has every difference with its standard error.",
    "**Rank**: where a channel's importance stands among all channels of its run, from 0 to 1. Importance itself is "
    "scaled within each run, so that its levels do not compare between runs; ranks do.",
    "**Overlap** (IoU): channels that both masks keep over channels that either keeps. Chance is that of random masks "
    "with the same counts in every layer, kind and KV head, as expected intersection over expected union.",
    "**Early, middle, late** are thirds of the layers.",
)


def comparison_report(comparison: Comparison, figures: Sequence[Path]) -> str:
    """variant_comparison.md, linking `figures`, which lie beside it."""
    short, *sections = key_findings(comparison)
    names = ", ".join(code(variant.name) for variant in comparison.variants)
    lines = [f"# Comparison of {names}", "", *(f"- {text(line)}" for line in short.lines), ""]
    if comparison.flags:
        lines += ["> **Read this first**", *(f"> - {text(flag)}" for flag in comparison.flags), ""]
    lines += ["## Variants", "", f"Baseline: {code(comparison.baseline)}", "", *overview(comparison), ""]
    for section in sections:
        if section.about:
            lines += [f"### {text(section.title)}", "", *(f"- {text(line)}" for line in section.lines), ""]
    table = layer_table(comparison)
    lines += ["## Layer by layer", "", *markdown_table(list(table), table.to_numpy().tolist()), ""]
    if comparison.notes:
        lines += ["## Notes", "", *(f"- {text(note)}" for note in comparison.notes), ""]
    if figures:
        lines += ["## Figures", "", *(f"![{path.stem}]({path.name})" for path in figures), ""]
    lines += ["## How to read these numbers", "", *(f"- {line}" for line in HOW_TO_READ)]
    return "\n".join(lines) + "\n"


def overview(comparison: Comparison) -> list[str]:
    """One row per fact, one column per variant."""
    variants = comparison.variants
    rows: list[list[Any]] = [
        [title, *(", ".join(dict.fromkeys(v.numbers[name].fillna(ABSENT).map(str))) for v in variants)]
        for title, name in (("checkpoint", "checkpoint"), ("mask method", "method"), ("basis", "basis"))
    ]
    rows.insert(1, ["runs (seeds)", *(f"{len(v.runs)} ({seeds_in_words(v)})" for v in variants)])
    rows.append(["evaluation data", *(v.first.dataset.name or ABSENT for v in variants)])
    if any(v.needed for v in variants):
        target = next(v.needed.target for v in variants if v.needed)
        cells = [needed_words(v.needed) if v.needed else ABSENT for v in variants]
        rows.append([f"units needed for {target}", *cells])
    if any(v.gates for v in variants):
        rows.append(["gates", *(v.gates or ABSENT for v in variants)])
    kinds: tuple[tuple[str, Kind], ...] = (("sparsity", "kv"), ("K sparsity", "k"), ("V sparsity", "v"))
    rows += [[title, *(percents(v.sparsity(kind)) for v in variants)] for title, kind in kinds]
    for metric in METRICS:
        errors = [v.error(metric.name) for v in variants]
        spreads = [v.spread(metric.name) for v in variants]
        if not any(spreads):
            continue
        cells = [with_spread(spread, metric.digits) if spread else ABSENT for spread in spreads]
        rows.append([f"{metric.title}{f' [{metric.unit}]' if metric.unit else ''}", *cells])
        if any(errors):
            rows.append(["… SE of the data", *(number(error, metric.digits) for error in errors)])
    return markdown_table(["", *(variant.name for variant in variants)], rows)


def seeds_in_words(variant: Variant) -> str:
    """'0, 1', with a dash where a seed is not recorded."""
    return ", ".join(ABSENT if run.result.seed is None else str(run.result.seed) for run in variant.runs)


def layer_table(comparison: Comparison) -> pd.DataFrame:
    """One row of plain, sortable numbers per layer of the baseline, with delta columns and their standard errors.

    Where another variant has as many layers, its own columns are there; else only the deltas at equal
    relative depth.
    """
    baseline = comparison[comparison.baseline]
    table = pd.DataFrame(
        {"layer": baseline.indices, "name": [layer.name for layer in baseline.runs[0].layers]}
    )
    kinds: tuple[tuple[Kind, str], ...] = (("kv", "sparsity"), ("k", "K"), ("v", "V"))
    for variant in comparison.variants:
        difference = comparison.differences.get(variant.name)
        if difference is None or not difference.by_depth:
            for kind, title in kinds:
                table[f"{variant.name} {title}"] = variant.per_layer("sparsity", kind)["mean"].to_numpy()
            for title in ("rank", "kept"):
                table[f"{variant.name} {title}"] = variant.per_layer(title, "kv")["mean"].to_numpy()
        if difference is not None:
            for kind, title in kinds:
                claims = [place.sparsity[kind] for place in difference.layers]
                table[f"Δ {variant.name} {title}"] = [claim.difference for claim in claims]
                if any(claim.error is not None for claim in claims):
                    table[f"Δ {variant.name} {title} SE"] = [claim.error for claim in claims]
            table[f"Δ {variant.name} kept"] = [place.kept for place in difference.layers]
    return table.astype(object).where(table.notna(), None)


def summary_table(comparison: Comparison) -> pd.DataFrame:
    """Every difference from the baseline: one row per variant and number, with standard error, interval and verdict.

    number: a metric's name, or "sparsity" with its place and kind. se: standard error of the difference; se_of:
    "runs" (and evaluation sequences where `paired`), or "evaluation data" alone where a side has a single run.
    """
    rows = []
    for name, difference in comparison.differences.items():
        rows += [_summary(name, metric, "", "", claim) for metric, claim in difference.metrics.items()]
        rows += [
            _summary(name, "sparsity", place.title, kind, claim)
            for place in (difference.whole, *difference.layers, *difference.thirds)
            for kind, claim in place.sparsity.items()
        ]
    return pd.DataFrame(rows)


def _summary(variant: str, name: str, place: str, kind: str, claim: Claim) -> dict[str, Any]:
    effect = claim.effect
    source = None if claim.error is None else "runs" if effect.seeds > 1 else "evaluation data"
    return {
        "variant": variant,
        "number": name,
        "place": place,
        "kind": kind,
        "baseline": claim.baseline.mean,
        "baseline_sd": claim.baseline.sd,
        "value": claim.variant.mean,
        "value_sd": claim.variant.sd,
        "difference": claim.difference,
        "se": claim.error,
        "se_of": source,
        "low": effect.low,
        "high": effect.high,
        "p": claim.p,
        "paired": effect.paired,
        "verdict": claim.verdict,
    }


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


def percents(spread: Spread) -> str:
    """A fraction as a percentage, with the standard deviation in points."""
    sd = f" ± {number(100 * spread.sd, 2)}" if spread.sd else ""
    return f"{percent(spread.mean, 2)}{sd}"
