"""What an offline W&B run file holds, so that tests see what an upload would show."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protocol

FILE_HEADER = 7
BLOCK = 32768
WHOLE, LAST = 1, 4
FLUSH_SECONDS = 15.0


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file in the order of writing, up to the first one that is cut off.

    The file is framed like a LevelDB log: a header, then blocks of 32 KiB filled with pieces of
    `<crc u32><length u16><kind u8><payload>`, where a piece is a whole record or its first, middle or last
    part. A record is a protobuf message.
    """
    data, position, payload = path.read_bytes(), FILE_HEADER, b""
    while position + 7 <= len(data):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < 7:
            position += left_in_block
            continue
        _crc, length, kind = struct.unpack("<IHB", data[position : position + 7])
        piece = data[position + 7 : position + 7 + length]
        if len(piece) < length:
            return
        payload += piece
        position += 7 + length
        if kind in (WHOLE, LAST):
            yield protocol.Record.FromString(payload)  # type: ignore[attr-defined]  # made at import
            payload = b""


def ended_records(path: Path) -> list[Any]:
    """The records of a run that has ended; W&B's own process may still be writing when finish() returns."""
    give_up = time.monotonic() + FLUSH_SECONDS
    while True:
        records = list(read_records(path))
        if time.monotonic() > give_up or any(r.WhichOneof("record_type") == "exit" for r in records):
            return records
        time.sleep(0.02)


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
    for record in ended_records(path):
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
