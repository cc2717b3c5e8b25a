"""The steps of a run as a file of JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from mechint.loggers.logger import Logger, RunInfo
from mechint.loggers.values import plain
from mechint.runtime.files import write_atomically


class JsonlLogger(Logger):
    """Writes `metrics.jsonl` into the output directory: one JSON object per logged step.

    Each line is written and flushed as a whole, so the file can be read while the run goes on and a killed
    run leaves complete lines. NaN and infinity, which JSON does not have, become null. A file of an earlier
    run in the same directory is replaced, because two runs in one curve would be neither.
    """

    name = "jsonl"

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._path = Path()
        self._lines: list[str] = []

    def start(self, run: RunInfo) -> None:
        run.output_dir.mkdir(parents=True, exist_ok=True)
        self._path, self._lines = run.output_dir / "metrics.jsonl", []
        self._file = self._path.open("w", encoding="utf-8")

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        assert self._file is not None, "log() before start()"
        line = {"step": step} | {name: _json_number(value) for name, value in metrics.items()}
        self._lines.append(json.dumps(line, allow_nan=False) + "\n")
        self._file.write(self._lines[-1])
        self._file.flush()

    def finish(self, succeeded: bool) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            if not self._path.exists():  # someone removed the directory meanwhile
                with write_atomically(self._path) as temporary:
                    temporary.write_text("".join(self._lines), encoding="utf-8")


def _json_number(value: Any) -> Any:
    value = plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
