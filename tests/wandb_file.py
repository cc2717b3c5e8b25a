"""What an offline W&B run file holds, so that tests see what an upload would show."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechint.loggers.wandb_file import read_records


@dataclass
class OfflineRun:
    """A run as its file has it; `history` maps a step to its values, `artifacts` a type to {name: file}."""

    directory: Path
    project: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)
    exit_code: int | None = None

    def media(self, item: dict[str, Any]) -> Path:
        """The file behind an image or table of the history."""
        return self.directory / "files" / item["path"]


def read_offline_run(wandb_dir: Path) -> OfflineRun:
    """The one offline run below `wandb_dir`."""
    (path,) = wandb_dir.glob("offline-run-*/run-*.wandb")
    run = OfflineRun(directory=path.parent)
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            _read_run(run, record.run)
        elif kind == "history":
            run.history.setdefault(record.history.step.num, {}).update(_read_items(record.history.item))
        elif kind == "summary":
            run.summary.update(_read_items(record.summary.update))
        elif kind == "artifact":
            files = {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
            run.artifacts[record.artifact.type] = files
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _read_run(run: OfflineRun, record: Any) -> None:
    run.project, run.group, run.job_type = record.project, record.run_group, record.job_type
    run.name, run.tags = record.display_name, list(record.tags)
    run.config = {item.key: json.loads(item.value_json) for item in record.config.update}


def _read_items(items: Any) -> dict[str, Any]:
    """Items with a path of keys each as nested dictionaries."""
    values: dict[str, Any] = {}
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        level = values
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = json.loads(item.value_json)
    return values
