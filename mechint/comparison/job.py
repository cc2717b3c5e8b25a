"""Leaving a comparison or a study on disk and in the loggers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechint.comparison import record, report, study_report
from mechint.comparison.comparison import Comparison, ComparisonFigure
from mechint.comparison.findings import findings_text
from mechint.comparison.study import Study, StudyFigure
from mechint.loggers import Logger, LoggerGroup, RunInfo
from mechint.reporting.visualizer import require_dpi
from mechint.results.directories import refuse_run
from mechint.runtime.files import write_atomically, write_json

KEY_FINDINGS = "key_findings.txt"

Table = tuple[str, list[str], list[list[Any]]]

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
    """Write the figures, the findings, the report and comparison.json; returns the paths."""
    output.directory.mkdir(parents=True, exist_ok=True)
    drawn = [path for figure in figures for path in figure.draw(comparison, output.directory, output.dpi)]
    texts = {
        KEY_FINDINGS: findings_text(comparison),
        report.FILENAME: report.comparison_report(comparison, drawn),
    }
    summary = {
        name: {key: entry.difference for key, entry in difference.metrics.items()}
        for name, difference in comparison.differences.items()
    }
    table = ("layers", *report.layer_table(comparison))
    return _leave(output, drawn, texts, record.comparison_record(comparison), table, summary)


def leave_study(study: Study, figures: Sequence[StudyFigure], output: Output) -> list[Path]:
    """Write the figures, the tables and comparison.json; returns the paths."""
    output.directory.mkdir(parents=True, exist_ok=True)
    drawn = [path for figure in figures for path in figure.draw(study, output.directory, output.dpi)]
    texts = {
        study_report.CSV: study_report.study_csv(study),
        study_report.MARKDOWN: study_report.study_markdown(study, drawn),
    }
    summary = {"runs": {"finished": len(study.runs), "without_numbers": len(study.unfinished)}}
    table = ("runs", *study_report.study_table(study))
    return _leave(output, drawn, texts, record.study_record(study), table, summary)


def _leave(
    output: Output,
    drawn: list[Path],
    texts: Mapping[str, str],
    content: Mapping[str, Any],
    table: Table,
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
    logger.table(*table)
    logger.figures(drawn)
    if line := logger.finish(succeeded=True):
        log.info(line)
    write_json(directory / record.FILENAME, {**content, "not_logged": logger.not_logged})
    return [*drawn, *(directory / name for name in texts), directory / record.FILENAME]
