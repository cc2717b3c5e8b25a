"""The table of a study as Markdown; as CSV it is `Study.points` and `Study.groups` joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechint.comparison.report import markdown_table
from mechint.comparison.runs import BYTES_PER_ELEMENT, OF_TASK, rows_of
from mechint.comparison.study import Study
from mechint.metrics.statistics import digits_for
from mechint.reporting.wording import ABSENT, code, number, percent, text

CSV, MARKDOWN = "table.csv", "table.md"

JUDGED = "## Verdicts on runs that sum up others"

# Number, title, decimals at most.
COLUMNS = (
    ("loss", "loss", 4),
    ("loss_degradation_percent", "degradation [%]", 2),
    ("kl", "KL", 4),
    ("faithfulness", "faithfulness", 3),
    ("top1_agreement", "top-1", 3),
)

TASK_COLUMN = (OF_TASK, "faithfulness of the logit difference", 3)


def study_table(study: Study) -> pd.DataFrame:
    """One row per point: its curve, sparsity, KV bytes per token; mean, spread and standard error of each number."""
    shared = ["checkpoint", "method", "basis", "dense_loss", "empty_loss"]
    return study.points.merge(study.groups[shared], left_on="group", right_index=True)


def study_markdown(study: Study, figures: Sequence[Path]) -> str:
    """table.md: what to read first, one table per group, the runs without numbers."""
    lines = [f"# Runs below {code(study.root)}", ""]
    if study.flags:
        lines += ["> **Read this first**", *(f"> - {text(flag)}" for flag in study.flags), ""]
    lines += [
        f"{count_in_words(study)}. Mean ± sample standard deviation over seeds; for a single run ± the standard error "
        "of its evaluation data.",
        "",
    ]
    for path in figures:
        lines += [f"![{path.stem}]({path.name})", ""]
    for group in study.groups.index:
        lines += [f"## {text(group)}", "", *_group(study, group), ""]
    if study.judged is not None:
        columns = {"directory": "run", "verdict": "verdict", "failed_gates": "gates that failed"}
        rows = [[one[name] or ABSENT for name in columns] for one in rows_of(study.judged)]
        lines += [JUDGED, "", *markdown_table(list(columns.values()), rows), ""]
    if study.unfinished:
        rows = [[str(run.directory), run.status, run.reason] for run in study.unfinished]
        lines += ["## Without numbers", "", *markdown_table(["run", "status", "reason"], rows), ""]
    if study.notes:
        lines += ["## Notes", "", *(f"- {text(note)}" for note in study.notes), ""]
    lines += [
        f"KV bytes per token: what a cache holds of the kept K and V channels of all layers, at {BYTES_PER_ELEMENT} "
        "bytes each (bf16), equal keys and values once, with no padding. Sparsity is of units; losses are in nats per "
        "token, of the hard mask on evaluation data. IoU: channels that two seeds' masks share over channels that "
        "either keeps, mean over pairs; chance: for random masks with the same counts per layer, kind and KV head.",
    ]
    return "\n".join(lines) + "\n"


def count_in_words(study: Study) -> str:
    """'14 finished runs, 1 failed, 1 running'."""
    kinds = [run.status for run in study.unfinished]
    others = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    return ", ".join([f"{len(study.runs)} finished runs", *others])


def _group(study: Study, group: str) -> list[str]:
    shared, curve = study.groups.loc[group], study.curve(group)
    agreeing = bool(curve["iou"].notna().any())
    numbers = (*COLUMNS, *([TASK_COLUMN] if study.on_tasks else []))
    columns = ["sparsity", "KV bytes/token", *(title for _, title, _ in numbers), "n"]
    rows = []
    for point in curve.to_dict("records"):
        row = [percent(point["sparsity"], 2), f"{point['kv_bytes_per_token']:,.0f}"]
        row += [_cell(point, name, digits) for name, _, digits in numbers]
        row.append(str(point["n"]))
        if agreeing:
            found = study.agreements.get((group, point["sparsity"]))
            always, sometimes = (found.histogram[-1], sum(found.histogram[1:-1])) if found else (0, 0)
            row.append(f"{number(point['iou'], 3)} ({number(point['iou_chance'], 3)})" if found else ABSENT)
            row.append(f"{always:,} / {sometimes:,}" if found else ABSENT)
        if study.has_gates:
            row.append(point["gates"] or ABSENT)
        rows.append(row)
    dense = f"Dense: loss {number(shared['dense_loss'])}, {shared['dense_kv_bytes']:,} KV bytes per token."
    columns += ["IoU of seeds (chance)", "kept by all / some seeds"] if agreeing else []
    columns += ["gates"] if study.has_gates else []
    return [dense, "", *markdown_table(columns, rows)]


def _cell(point: dict[str, Any], name: str, most: int) -> str:
    """'1.543 ± 0.065': a mean with its standard deviation over seeds, or for a single run its standard error."""
    error = point[f"{name}_sd"] if point["n"] > 1 else point.get(f"{name}_se", math.nan)
    digits = digits_for(error, most)
    return number(point[name], digits) + (f" ± {number(error, digits)}" if error > 0 else "")
