"""The table of a study as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechint.comparison.record import POINT_METRICS
from mechint.comparison.report import markdown_table, with_spread
from mechint.comparison.study import BYTES_PER_ELEMENT, Study, StudyGroup, StudyPoint
from mechint.metrics.agreement import Agreement
from mechint.reporting.wording import ABSENT, code, number, percent, text

CSV, MARKDOWN = "table.csv", "table.md"


def study_table(study: Study) -> tuple[list[str], list[list[Any]]]:
    """One row per point: group, sparsity, KV bytes per token, mean and standard deviation of each number."""
    columns = ["group", "checkpoint", "method", "target", "sparsity", "kv_bytes_per_token", "n", "seeds"]
    columns += [f"{name}{end}" for name in POINT_METRICS for end in ("", "_sd")]
    columns += ["iou", "iou_chance"]
    rows = [_row(group, point) for group in study.groups for point in group.points]
    return [*columns, "dense_loss"], rows


def _row(group: StudyGroup, point: StudyPoint) -> list[Any]:
    seeds = " ".join("?" if run.seed is None else str(run.seed) for run in point.runs)
    row: list[Any] = [group.label, group.checkpoint, group.method, point.target, point.sparsity]
    row += [point.kv_bytes_per_token, len(point.runs), seeds]
    for name in POINT_METRICS:
        spread = point.spread(name)
        row += [spread.mean if spread else None, spread.sd if spread else None]
    found = point.agreement
    spreads = [found.iou, found.chance] if found else [None, None]
    return [*row, *(spread.mean if spread else None for spread in spreads), group.dense_loss]


def study_csv(study: Study) -> str:
    """table.csv; absent numbers are empty."""
    columns, rows = study_table(study)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def study_markdown(study: Study, figures: Sequence[Path]) -> str:
    """table.md: what to read first, one table per group, the runs without numbers."""
    lines = [f"# Runs below {code(study.root)}", ""]
    if study.flags:
        lines += ["> **Read this first**", *(f"> - {text(flag)}" for flag in study.flags), ""]
    lines += [f"{count_in_words(study)}. Mean ± sample standard deviation over seeds.", ""]
    for path in figures:
        lines += [f"![{path.stem}]({path.name})", ""]
    for group in study.groups:
        lines += [f"## {text(group.label)}", "", *_group(group), ""]
    if study.unfinished:
        rows = [[run.directory, run.status, run.reason] for run in study.unfinished]
        lines += ["## Without numbers", "", *markdown_table(["run", "status", "reason"], rows), ""]
    if study.notes:
        lines += ["## Notes", "", *(f"- {text(note)}" for note in study.notes), ""]
    lines += [
        f"KV bytes per token: kept K and V channels of all layers at {BYTES_PER_ELEMENT} bytes each (bf16), "
        "with no padding. Sparsity is of units; losses are in nats per token, of the hard mask on "
        "evaluation data. IoU: channels that two seeds' masks share over channels that either keeps, mean over pairs; "
        "chance: for random masks with the same counts in every layer, kind and KV head.",
    ]
    return "\n".join(lines) + "\n"


def count_in_words(study: Study) -> str:
    """'14 finished runs, 1 failed, 1 running'."""
    kinds = [run.status for run in study.unfinished]
    others = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    return ", ".join([f"{len(study.runs)} finished runs", *others])


def _group(group: StudyGroup) -> list[str]:
    dense = "unknown" if group.dense_loss is None else f"{group.dense_loss:.4f}"
    agreeing = any(point.agreement for point in group.points)
    columns = ["sparsity", "KV bytes/token", "loss", "degradation [%]", "KL", "faithfulness", "n"]
    columns += ["IoU of seeds (chance)", "kept by all / some seeds"] if agreeing else []
    rows = [
        [
            percent(point.sparsity, 2),
            f"{point.kv_bytes_per_token:,.0f}",
            *(
                with_spread(point.spread(name), digits)
                for name, digits in (
                    ("loss", 4),
                    ("loss_degradation_percent", 2),
                    ("kl", 4),
                    ("faithfulness", 3),
                )
            ),
            len(point.runs),
            *(_agreement(point.agreement) if agreeing else []),
        ]
        for point in group.points
    ]
    head = f"Dense: loss {dense}, {group.dense_kv_bytes_per_token:,} KV bytes per token."
    return [head, "", *markdown_table(columns, rows)]


def _agreement(found: Agreement | None) -> list[str]:
    """'0.620 (0.110)' and '40 / 124'."""
    if found is None:
        return [ABSENT, ABSENT]
    iou, chance = (number(s.mean if s else None, 3) for s in (found.iou, found.chance))
    return [
        f"{iou} ({chance})",
        f"{found.histogram[-1]:,} / {sum(found.histogram[1:-1]):,}",
    ]
