"""Leaving a comparison, a study or circuits on disk and in the loggers.

comparison.json, for other programs. Variants: {schema_version, kind "variants", created, not_logged, baseline,
comparable_loss, flags, notes, variants{name: {runs, numbers[a row per run], needed, gates, quoted, layers[a row per
layer, kind and run]}}, differences[the rows of summary.csv], overlaps{name: {iou k_iou v_iou chance contained highest
baseline_iou variant_iou layers}, or why there is none}}. Tree: {schema_version, kind "tree", created, not_logged,
root, bytes_per_element, flags, notes, groups[{label ... points[the rows of table.csv, with runs]}], judged[a row for
each run with gates that sums up others], unfinished[{directory status reason}]}. Circuits: {schema_version, kind
"circuits", created, not_logged, runs{name: {directory data ablation kept total}}, overlap[{first second shared iou
chance}], transfer[{mask data faithfulness interval kl kl_interval}]}. A SPREAD is {mean, sd, n, values}; sd is null
for a single run. Sparsities are fractions: of channels for variants, of units for a tree.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mechint.analysis.describing import now
from mechint.comparison import circuits, report, study_report, web_page
from mechint.comparison.comparison import Comparison, ComparisonFigure, Variant
from mechint.comparison.findings import findings_text
from mechint.comparison.runs import BYTES_PER_ELEMENT, rows_of
from mechint.comparison.study import Study, StudyFigure
from mechint.loggers import Logger, LoggerGroup, RunInfo
from mechint.metrics.spread import Spread
from mechint.reporting.visualizer import require_dpi
from mechint.reporting.web import PAGE
from mechint.results.between import Between
from mechint.results.directories import refuse_run
from mechint.runtime.files import write_atomically, write_json

RECORD, KEY_FINDINGS = "comparison.json", "key_findings.txt"
SCHEMA_VERSION = 2

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Output:
    """Where results go. config: what loggers record as the configuration of the job."""

    directory: Path
    loggers: Sequence[Logger] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    dpi: int = 150

    def __post_init__(self) -> None:
        require_dpi(self.dpi, "dpi")
        refuse_run(self.directory)


def leave_comparison(
    comparison: Comparison, figures: Sequence[ComparisonFigure], output: Output
) -> list[Path]:
    """Write the figures, the findings, the report, summary.csv and comparison.json; returns the paths."""
    output.directory.mkdir(parents=True, exist_ok=True)
    drawn = [path for figure in figures for path in figure.draw(comparison, output.directory, output.dpi)]
    differences = report.summary_table(comparison)
    texts = {
        KEY_FINDINGS: findings_text(comparison),
        report.FILENAME: report.comparison_report(comparison, drawn),
        report.SUMMARY: differences.to_csv(index=False),
        PAGE: web_page.comparison_page(comparison),
    }
    summary = {
        name: {key: claim.difference for key, claim in difference.metrics.items()}
        for name, difference in comparison.differences.items()
    }
    content = {
        "kind": "variants",
        "baseline": comparison.baseline,
        "comparable_loss": comparison.comparable_loss,
        "flags": list(comparison.flags),
        "notes": list(comparison.notes),
        "variants": {variant.name: _variant(variant) for variant in comparison.variants},
        "differences": rows_of(differences),
        "overlaps": {
            name: as_plain(difference.overlap) if difference.overlap else difference.no_overlap
            for name, difference in comparison.differences.items()
        },
    }
    return _leave(output, drawn, texts, content, ("layers", report.layer_table(comparison)), summary)


def leave_study(study: Study, figures: Sequence[StudyFigure], output: Output) -> list[Path]:
    """Write the figures, the tables and comparison.json; returns the paths."""
    output.directory.mkdir(parents=True, exist_ok=True)
    drawn = [path for figure in figures for path in figure.draw(study, output.directory, output.dpi)]
    table = study_report.study_table(study)
    texts = {
        study_report.CSV: table.to_csv(index=False),
        study_report.MARKDOWN: study_report.study_markdown(study, drawn),
        PAGE: web_page.study_page(study),
    }
    groups = []
    for label, shared in zip(study.groups.index, rows_of(study.groups), strict=True):
        points = rows_of(study.curve(label))
        for point in points:
            of_point = (study.runs["group"] == label) & (study.runs["sparsity"] == point["sparsity"])
            point["runs"] = rows_of(study.runs[of_point])
            point["agreement"] = as_plain(study.agreements.get((label, point["sparsity"])))
        groups.append({"label": label, **shared, "points": points})
    content = {
        "kind": "tree",
        "root": str(study.root),
        "bytes_per_element": BYTES_PER_ELEMENT,
        "flags": list(study.flags),
        "notes": list(study.notes),
        "groups": groups,
        "judged": [] if study.judged is None else rows_of(study.judged),
        "unfinished": as_plain(study.unfinished),
    }
    summary = {"runs": {"finished": len(study.runs), "without_numbers": len(study.unfinished)}}
    return _leave(output, drawn, texts, content, ("runs", table), summary)


def leave_circuits(found: Between, drawings: Sequence[circuits.CircuitsFigure], output: Output) -> list[Path]:
    """Write the figures, the tables and comparison.json; returns the paths."""
    output.directory.mkdir(parents=True, exist_ok=True)
    drawn = [path for figure in drawings for path in figure.draw(found, output.directory, output.dpi)]
    transfer = circuits.transfer_table(found)
    texts = {
        circuits.MARKDOWN: circuits.circuits_markdown(found, drawn),
        circuits.OVERLAP: circuits.overlap_table(found).to_csv(index=False),
        circuits.TRANSFER: transfer.to_csv(index=False),
    }
    content = {"kind": "circuits", **found.as_json()}
    summary = {
        "faithfulness": {f"{one.mask} on {one.data}": one.faithfulness for one in found.transfer},
        "iou": {f"{one.first} and {one.second}": one.iou for one in found.overlap},
    }
    return _leave(output, drawn, texts, content, ("transfer", transfer), summary)


def _leave(
    output: Output,
    drawn: list[Path],
    texts: Mapping[str, str],
    content: Mapping[str, Any],
    table: tuple[str, pd.DataFrame],
    summary: Mapping[str, Any],
) -> list[Path]:
    directory = output.directory
    for name, text in texts.items():
        with write_atomically(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    logger = LoggerGroup(output.loggers)
    name = f"{directory.parent.name}/{directory.name}".strip("/")
    logger.start(RunInfo(name, None, "compare", dict(output.config), directory))
    logger.summary(summary)
    title, frame = table
    logger.table(title, list(frame), [list(row.values()) for row in rows_of(frame)])
    logger.figures(drawn)
    if line := logger.finish(succeeded=True):
        log.info(line)
    head = {"schema_version": SCHEMA_VERSION, "created": now()}
    write_json(directory / RECORD, {**head, **content, "not_logged": logger.not_logged})
    return [*drawn, *(directory / name for name in texts), directory / RECORD]


def _variant(variant: Variant) -> dict[str, Any]:
    return {
        "runs": [str(run.directory) for run in variant.runs],
        "numbers": rows_of(variant.numbers),
        "needed": as_plain(variant.needed),
        "gates": variant.gates,
        "quoted": list(variant.quoted),
        "layers": rows_of(variant.layers.reset_index()),
    }


def as_plain(value: Any) -> Any:
    """Dataclasses, spreads and tuples as dictionaries and lists."""
    if isinstance(value, Spread):
        return value.as_record()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: as_plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    return [as_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
