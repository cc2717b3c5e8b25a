"""Experiments run in the test's own process, which saves the seconds that every import of torch takes."""

from __future__ import annotations

import io
import logging
import re
import runpy
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
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


@dataclass(frozen=True)
class Experiment:
    """`python experiments/analyze.py ...`, or another program, started in `directory`."""

    directory: Path
    program: str = "analyze.py"

    def __call__(self, *arguments: str | Path, small: bool = True) -> Ended:
        """Run it; the settings of a small run are added."""
        words = [str(argument) for argument in arguments] + (SMALL if small else [])
        if small and not any(re.match(r"mask=|mask\.finishing|\+?experiment=", word) for word in words):
            words.append(FEW_TRIALS)
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(io.StringIO()) as out,
            redirect_stderr(io.StringIO()) as err,
        ):
            patch.chdir(self.directory)
            patch.setattr("sys.argv", [self.program, *words])
            code = _exit_code(ROOT / "experiments" / self.program)
        return Ended(code, out.getvalue(), err.getvalue())


def _exit_code(script: Path) -> int:
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@contextmanager
def experiment(directory: Path, program: str = "analyze.py") -> Iterator[Experiment]:
    """Runs experiments/analyze.py, or another program, in a directory; what Hydra does to logging ends with it."""
    with logging_as_before():
        yield Experiment(directory, program)


@contextmanager
def logging_as_before() -> Iterator[None]:
    """Take away the handlers and levels that a program leaves."""
    root, progress = logging.getLogger(), logging.getLogger("mechint.loggers.progress")
    handlers, level = list(root.handlers), root.level
    yield
    progress.setLevel(logging.NOTSET)  # which experiments/benchmark.py raises
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
