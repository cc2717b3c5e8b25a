"""What loggers are told about a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    """What a logger needs to know about a run before its first step.

    `config` is a plain dictionary (resolved, no OmegaConf nodes); `group` joins the runs of one sweep.
    """

    name: str
    group: str | None
    job_type: str
    config: dict[str, Any]
    output_dir: Path


class Logger:
    """A place where a run is recorded; every method does nothing until a subclass overrides it.

    The order of calls is: `start`, `log` once per logged step, then any of `summary`, `table`, `figures`
    and `masks`, and `finish` at the very end, also after a failure and also without a `start`. A logger may
    raise any error: `LoggerGroup` keeps it away from the analysis.
    """

    name = "logger"

    def start(self, run: RunInfo) -> None:
        """Open the run."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record the numbers of one step; a value of None has nothing to show and is left out of curves."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Record the numbers that stand for the whole run, possibly nested: `{"masked": {"loss": 1.5}}`."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table, as known at the end of the run."""

    def figures(self, paths: Sequence[Path]) -> None:
        """Record pictures (PNG files)."""

    def masks(self, paths: Sequence[Path]) -> None:
        """Record the files that hold the learned masks."""

    def finish(self, succeeded: bool) -> str | None:
        """Close the run and return one line that the user should read (say, how to upload), if any."""
