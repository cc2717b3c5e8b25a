"""Starting a Hydra application, and what the user is told at its end."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mechint.config.followers import followers_aside
from mechint.config.jobs import USER_ERRORS, error_line, fail, in_user_words
from mechint.config.schema import register
from mechint.config.sweeps import Sweep, succeeded, table
from mechint.config.tracking import current_sweep, forget_sweep
from mechint.runtime.signals import EXIT_CODE, Interrupted

CTRL_C = 130  # the exit code that shells give to it


def launch(main: Callable[[], Any], several: bool = False) -> None:
    """Run a Hydra main function; configuration errors become one line with exit code 2.

    several: whether several processes, started by torchrun, may work on one run.

    A tracked sweep ends with a table of its jobs, and with exit code 1 unless all of them are done.
    """
    register()
    forget_sweep()
    problem: BaseException | None = None
    with _errors_raised() as wanted_trace:
        try:
            with followers_aside(several):
                main()
        except (Exception, KeyboardInterrupt) as error:
            problem = in_user_words(error)
    sweep = current_sweep()
    if sweep is not None and (sweep.begun or not isinstance(problem, USER_ERRORS)):
        _wait_for_the_others(problem)
        raise SystemExit(_report(sweep, problem))
    if problem is None:
        return
    if isinstance(problem, USER_ERRORS) and not wanted_trace:
        fail(problem)
    raise problem


@contextmanager
def _errors_raised() -> Iterator[bool]:
    """Make Hydra raise errors, where it would print them itself; yields whether the user asked for that, too."""
    name = "HYDRA_FULL_ERROR"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield before is not None
    finally:
        if before is None:
            del os.environ[name]


def _wait_for_the_others(problem: BaseException | None) -> None:
    """Wait for the Slurm jobs of a sweep that submitit gave up on because one of them died.

    They go on, but only its launcher, which the error has left, knows them.
    """
    if problem is None or _origin(problem) != "submitit":
        return
    for frame, _ in traceback.walk_tb(problem.__traceback__):
        for job in frame.f_locals.get("jobs", []) if frame.f_code.co_name == "launch" else []:
            job.wait()


def _origin(problem: BaseException) -> str:
    """The package that an error comes from."""
    return type(problem).__module__.split(".")[0]


def _report(sweep: Sweep, problem: BaseException | None) -> int:
    """Print what became of a sweep; its exit code."""
    outcomes = sweep.outcomes()
    print(table(outcomes, sweep.directory))
    sweep.end()
    if problem is None and succeeded(outcomes):
        return 0
    if isinstance(problem, Exception) and _origin(problem) not in ("submitit", "joblib"):
        traceback.print_exception(problem)
    if problem is not None:
        stopped = f"{type(problem).__name__}: {error_line(problem)}".rstrip(": ")
        print(f"error: the sweep stopped early: {stopped}", file=sys.stderr)
    remedy = f"the same command with output_dir={sweep.directory} repeats only what is not done"
    print(remedy, file=sys.stderr)
    if isinstance(problem, Interrupted):
        return EXIT_CODE
    return CTRL_C if isinstance(problem, KeyboardInterrupt) else 1
