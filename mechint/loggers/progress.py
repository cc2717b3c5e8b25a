"""What you see while a run is going."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mechint.loggers.values import flatten

log = logging.getLogger(__name__)

LINES_PER_RUN = 10

# Seconds between log lines of phases other than learning, so that quick ones log nothing.
SECONDS_PER_LINE = 10.0

# Short enough for two numbers on 80 columns.
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


NOTHING: Mapping[str, Any] = {}


def lines_every(steps: int, lines: int) -> int:
    """So many steps apart are about as many lines as wanted in a run; each step has one where there are fewer."""
    return max(1, round(steps / lines))


class Progress:
    """The step, a few numbers and the time left: a bar on a terminal, otherwise about ten log lines per run, and one
    every ten seconds for what comes after its steps.

    `bar` forces one or the other; None means a bar where stderr is a terminal. Sweeps force lines, since
    the bars of several jobs at once would overwrite each other. Lines go through `logging`, so they also
    reach a job's log file.
    """

    def __init__(self, bar: bool | None = None) -> None:
        self.bar = sys.stderr.isatty() if bar is None else bar
        self._open = ExitStack()
        self._tqdm: tqdm | None = None
        self._total = 0
        self._started = self._said = 0.0
        self._title, self._unit = "", "step"
        self._next_line = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, total: int, title: str = "", unit: str = "step") -> None:
        """Begin to count `total` steps, or other units, under a title such as "measuring"."""
        self.close()
        self._total, self._started, self._title, self._unit = total, time.monotonic(), title, unit
        self._next_line, self._said = self._line_every, self._started
        if self.bar:
            # By itself tqdm draws nothing on a terminal that does not know its size, as in some containers.
            columns, rows = shutil.get_terminal_size()
            bar = tqdm(
                total=total,
                desc=title or None,
                bar_format=BAR,
                ncols=columns,
                nrows=rows,
                leave=False,
                mininterval=0.5,
                file=sys.stderr,
            )
            self._tqdm = self._open.enter_context(bar)
            # Without this a log line would be printed into the middle of the bar.
            self._open.enter_context(logging_redirect_tqdm())

    def update(self, step: int, values: Mapping[str, Any] = NOTHING) -> None:
        """Report that `step` steps of the total are done, with the numbers of the last one."""
        if self._tqdm is not None:
            self._tqdm.set_postfix(
                {name: _number(value) for name, value in flatten(values).items()}, refresh=False
            )
            self._tqdm.update(step - self._tqdm.n)
        elif self._due(step):
            self._next_line = step - step % self._line_every + self._line_every
            self._said = time.monotonic()
            log.info(self._line(step, values))

    def close(self) -> None:
        """Take the bar away; harmless when there is none."""
        self._open.close()
        self._tqdm = None

    def _due(self, step: int) -> bool:
        if self._unit == "step":
            return step >= self._next_line or step == self._total
        return time.monotonic() - self._said >= SECONDS_PER_LINE

    @property
    def _line_every(self) -> int:
        return lines_every(self._total, LINES_PER_RUN)

    def _line(self, step: int, values: Mapping[str, Any]) -> str:
        seconds_left = (time.monotonic() - self._started) / max(step, 1) * (self._total - step)
        numbers = [f"{name} {_number(value)}" for name, value in flatten(values).items()]
        title = [self._title] if self._title else []
        left = f"{tqdm.format_interval(seconds_left)} left"
        return "  ".join([*title, f"{self._unit} {step}/{self._total}", *numbers, left])


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
