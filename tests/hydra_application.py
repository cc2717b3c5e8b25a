"""Experiments run in the test's own process, which saves the seconds that every import of torch takes."""

from __future__ import annotations

import logging
import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

# A run of a fraction of a second on a tiny model that reads bytes.
SMALL = [
    "steps=3",
    "dataset.sequence_length=32",
    "dataset.calibration_tokens=2048",
    "dataset.evaluation_tokens=1024",
    "visualizer=none",
    "controls.random_masks=2",
]
FEW_TRIALS = "mask.finishing_trials=2"  # of the default method


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str


class Experiment:
    """`python experiments/analyze.py ...`, or another program, started in `directory`."""

    def __init__(
        self,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        program: str = "analyze.py",
    ) -> None:
        self.directory, self._monkeypatch, self._capsys = directory, monkeypatch, capsys
        self._program = program

    def __call__(self, *arguments: str | Path, small: bool = True) -> Ended:
        """Run it; the settings of a small run are added."""
        words = [str(argument) for argument in arguments] + (SMALL if small else [])
        if small and not any(re.match(r"mask=|mask\.finishing|\+?experiment=", word) for word in words):
            words.append(FEW_TRIALS)
        self._monkeypatch.setattr(sys, "argv", [self._program, *words])
        self._capsys.readouterr()
        return Ended(_exit_code(ROOT / "experiments" / self._program), *self._capsys.readouterr())


def _exit_code(script: Path) -> int:
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@contextmanager
def experiment(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str = "analyze.py",
) -> Iterator[Experiment]:
    """Runs experiments/analyze.py, or another program, below a directory; what Hydra does to logging ends with it."""
    monkeypatch.chdir(directory)
    root, progress = logging.getLogger(), logging.getLogger("mechint.loggers.progress")
    handlers, level = list(root.handlers), root.level
    yield Experiment(directory, monkeypatch, capsys, program)
    progress.setLevel(logging.NOTSET)  # which experiments/benchmark.py raises
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
