"""Starting a Hydra application, and what the user is told at its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from mechint.config.jobs import USER_ERRORS, fail, one_line
from mechint.config.schema import register
from mechint.config.tracking import current_sweep, forget_sweep
from mechint.sweeps import Sweep, succeeded, table

INTERRUPTED = 130  # the exit code that shells give to Ctrl-C


def launch(main: Callable[[], Any]) -> None:
    """Run a Hydra main function; configuration errors become one line with exit code 2.

    A tracked sweep ends with a table of its jobs, and with exit code 1 unless all of them are done.
    """
    register()
    forget_sweep()
    wanted_trace = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself
    problem: BaseException | None = None
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        problem = error
    sweep = current_sweep()
    if sweep is not None and sweep.begun:
        raise SystemExit(_report(sweep, problem))
    if problem is None:
        return
    if isinstance(problem, USER_ERRORS) and not wanted_trace:
        fail(problem)
    raise problem


def _report(sweep: Sweep, problem: BaseException | None) -> int:
    """Print what became of a sweep; its exit code."""
    outcomes = sweep.outcomes()
    print(table(outcomes, sweep.directory))
    sweep.end()
    if problem is None and succeeded(outcomes):
        return 0
    if problem is not None:
        stopped = f"{type(problem).__name__}: {one_line(problem)}".rstrip(": ")
        print(f"error: the sweep stopped early: {stopped}", file=sys.stderr)
    print(
        f"the same command with output_dir={sweep.directory} repeats only what is not done", file=sys.stderr
    )
    return INTERRUPTED if isinstance(problem, KeyboardInterrupt) else 1
