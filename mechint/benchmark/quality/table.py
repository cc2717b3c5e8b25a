"""The tables of a quality benchmark, as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from mechint.analysis.describing import Record
from mechint.benchmark.quality.cells import KINDS
from mechint.benchmark.quality.summary import ordered
from mechint.comparison.report import markdown_table
from mechint.reporting.wording import ABSENT, code, number, percent, text
from mechint.runtime.files import write_atomically

CSV, MARKDOWN, FIGURE = "table.csv", "table.md", "kl_by_sparsity.png"

COLUMNS = (
    "model", "sparsity", "method", "kind", "kept", "units", "seeds", "KL", "KL lowest", "KL highest", "loss",
    "dense loss", "binarization gap", "IoU", "IoU by chance", "passes", "seconds",
)  # fmt: skip

HOW_TO_READ = (
    "**KL**: mean over held-out positions of KL(dense || masked) in nats, hard mask of exactly the kept units; mean "
    "over seeds, in brackets the lowest and the highest. **Loss**: next-token loss in nats, on the same tokens.",
    "**Passes**: batches that went through the model, forward and backward or forward only. One-shot scorers take what "
    "they need, and at most as many as all others. The dense model's outputs on the calibration data, which every "
    "learner needs once, are not counted.",
    "**Gap** (binarization): KL of the hard mask − KL of the method's own soft gates; 0 where these are hard, — for "
    "scorers. Soft gates have no exact count, so a gap may be negative.",
    "**IoU**: channels kept by both over channels kept by either, mean over pairs of seeds; in brackets its value for "
    "random masks with as many channels in every layer, kind and KV head.",
)


def write_tables(record: Record, directory: Path) -> None:
    """Write table.csv and table.md."""
    texts = {CSV: as_csv(record), MARKDOWN: as_markdown(record)}
    for name, content in texts.items():
        with write_atomically(directory / name) as path:
            path.write_text(content, encoding="utf-8")


def as_csv(record: Record) -> str:
    """One line per model, sparsity and method, numbers in full."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in ordered(record["summary"]["points"]):
        writer.writerow(["" if value is None else value for value in _row(point)])
    return buffer.getvalue()


def _row(point: Record) -> list[Any]:
    kl = point["kl"]
    mean = {
        name: (point[name] or {}).get("mean") for name in ("loss", "binarization_gap", "passes", "seconds")
    }
    return [
        *(point[name] for name in ("model", "sparsity", "method", "kind", "kept", "total", "seeds")),
        *(kl["mean"], kl["low"], kl["high"], mean["loss"], point["dense_loss"], mean["binarization_gap"]),
        *(point["iou"], point["iou_chance"], mean["passes"], mean["seconds"]),
    ]


def as_markdown(record: Record) -> str:
    """What was run, the ratios, a table per model, and how to read them."""
    summary = record["summary"]
    ablations = dict.fromkeys(cell.get("ablation", "zero") for cell in record["cells"])
    lines = [
        "# Mask methods at equal passes",
        "",
        f"{record['started'][:10]}, {record['machine']}; at most {record['passes']} passes a run, "
        f"ablation {' and '.join(ablations)}, seeds {', '.join(str(seed) for seed in record['seeds'])}.",
        "",
        *(f"> left out: {_failure(failed)}\n" for failed in record["failed"]),
        f"![KL against sparsity]({FIGURE})",
        "",
        "## Against the default",
        "",
        *_ratio_lines(summary["ratios"], record["reference"]),
    ]
    for model in dict.fromkeys(point["model"] for point in summary["points"]):
        points = [point for point in ordered(summary["points"]) if point["model"] == model]
        lines += ["", f"## {text(model)}", "", *_model_table(points)]
    lines += ["", "## How to read these numbers", "", *(f"- {line}" for line in HOW_TO_READ)]
    return "\n".join(lines) + "\n"


def _failure(failed: Record) -> str:
    method = f", {code(failed['method'])}" if failed["method"] else ""
    return f"{code(failed['model'])}{method}: {text(failed['reason'])}"


def _ratio_lines(ratios: list[Record], reference: str) -> list[str]:
    """Two tables: the default over the best of each kind, and every method over the default."""
    sparsities = [percent(entry["sparsity"], 0) for entry in ratios]
    rows: list[list[str]] = []
    for kind in KINDS[1:]:
        best = [entry["best"].get(kind) for entry in ratios]
        if any(best):
            rows.append([f"best {kind}", *(_versus(entry, "ratio", named=True) for entry in best)])
            rows.append(
                [f"best {kind} on each model", *(_versus(entry, "ratio_per_model") for entry in best)]
            )
    methods = list(dict.fromkeys(name for entry in ratios for name in entry["methods"]))
    every = [
        [name, *(number((entry["methods"].get(name) or {}).get("ratio"), 2) for entry in ratios)]
        for name in methods
    ]
    return [
        f"KL of {code(reference)} over that of the best of the others, geometric mean over models (below 1: better).",
        "",
        *markdown_table(["relative to", *sparsities], rows),
        "",
        f"KL of every method relative to that of {code(reference)}, geometric mean over models (above 1: worse).",
        "",
        *markdown_table(["method", *sparsities], every),
    ]


def _versus(best: Record | None, key: str, named: bool = False) -> str:
    if best is None:
        return ABSENT
    return number(best[key], 2) + (f" ({best['method']})" if named else "")


def _model_table(points: list[Record]) -> list[str]:
    columns = [
        "sparsity", "method", "kept", "KL", "loss", "gap", "IoU (chance)", "passes", "seconds",
    ]  # fmt: skip
    rows = []
    for point in points:
        kl, gap = point["kl"], point["binarization_gap"]
        spread = f" ({number(kl['low'])} to {number(kl['high'])})" if point["seeds"] > 1 else ""
        overlap = (
            f"{number(point['iou'], 2)} ({number(point['iou_chance'], 2)})"
            if point["iou"] is not None
            else ABSENT
        )
        rows.append(
            [
                percent(point["sparsity"], 0),
                point["method"],
                f"{point['kept']:,} of {point['total']:,}",
                number(kl["mean"]) + spread,
                number(point["loss"]["mean"]),
                number(gap["mean"]) if gap else ABSENT,
                overlap,
                number(point["passes"]["mean"], 0),
                number(point["seconds"]["mean"], 1),
            ]
        )
    dense = f"Dense loss {number(points[0]['dense_loss'])}; KL of the empty model {number(points[0]['empty_kl'])}."
    return [dense, "", *markdown_table(columns, rows)]
