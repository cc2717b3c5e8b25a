"""Several loggers as one, none of which can stop an analysis."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechint.loggers.logger import Logger, RunInfo

log = logging.getLogger(__name__)


@dataclass
class _Loss:
    """What one logger did not record, and why."""

    reason: str
    parts: list[str]

    def add(self, part: str) -> None:
        """Add a later part, unless the first one says so already."""
        first = self.parts[0]
        same_curves = first.startswith("metrics") and part.startswith("metrics")
        if first != "everything" and not same_curves and part not in self.parts:
            self.parts.append(part)


class LoggerGroup(Logger):
    """Passes every call on to all its loggers, and never raises.

    A logger that fails is switched off with one warning: the rest of the run goes past it, apart from
    `finish`, which lets it close what it has open. `not_logged` says afterwards what is missing where.
    """

    name = "group"

    def __init__(self, loggers: Iterable[Logger] = ()) -> None:
        self.loggers = list(loggers)
        self._losses: dict[int, list[_Loss]] = {}

    @property
    def not_logged(self) -> list[str]:
        """One line for each failure: `"wandb: figures, masks (No space left on device)"`."""
        return [
            f"{logger.name}: {', '.join(loss.parts)} ({loss.reason})"
            for index, logger in enumerate(self.loggers)
            for loss in self._losses.get(index, [])
        ]

    def start(self, run: RunInfo) -> None:
        self._each("start", "everything", run)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._each("log", f"metrics from step {step}", metrics, step)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        self._each("summary", "summary", metrics)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._each("table", f"table {name}", name, columns, rows)

    def figures(self, paths: Sequence[Path]) -> None:
        self._each("figures", "figures", paths)

    def masks(self, paths: Sequence[Path]) -> None:
        self._each("masks", "masks", paths)

    def finish(self, succeeded: bool) -> str | None:
        """Close every logger, also one that is switched off; return the lines for the user, joined."""
        lines = []
        for index, logger in enumerate(self.loggers):
            try:
                line = logger.finish(succeeded)
            except Exception as error:
                self._note(index, "end of the run", error)
            else:
                lines += [line] if line else []
        return "\n".join(lines) or None

    def _each(self, stage: str, part: str, *arguments: Any) -> None:
        """Call the method `stage` of every logger that still works; `part` is what is lost where it fails."""
        for index, logger in enumerate(self.loggers):
            if index in self._losses:
                if _records(logger, stage):
                    self._losses[index][0].add(part)
                continue
            try:
                getattr(logger, stage)(*arguments)
            # Loggers reach for networks, disks and other processes, so any error at all may come out of them.
            except Exception as error:
                self._note(index, part, error)

    def _note(self, index: int, part: str, error: Exception) -> None:
        """Remember a failure; warn only about a logger's first one."""
        reason = _reason(error)
        losses = self._losses.setdefault(index, [])
        if not losses:
            name = self.loggers[index].name
            log.warning(
                "the logger %s is switched off, and the run continues without it: %s: %s", name, part, reason
            )
        if losses and losses[0].reason == reason:
            losses[0].add(part)
        else:
            losses.append(_Loss(reason, [part]))


def _records(logger: Logger, stage: str) -> bool:
    """Whether a logger does anything at this stage; TensorBoard, say, has no place for masks."""
    return getattr(getattr(logger, stage), "__func__", None) is not getattr(Logger, stage)


def _reason(error: Exception) -> str:
    """An error in one line; an operating system's error in its plain words, without inner paths."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().split("\n")[0] or type(error).__name__
