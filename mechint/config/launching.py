"""Starting a Hydra application, and what the user is told at its end."""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mechint.config.errors import USER_ERRORS, error_line, fail, in_user_words
from mechint.config.schema import register
from mechint.config.sweeps import Sweep, succeeded, table
from mechint.config.tracking import current_sweep, forget_sweep
from mechint.errors import UserError
from mechint.runtime.signals import EXIT_CODE, Interrupted

CTRL_C = 130  # the exit code that shells give to it


def launch(main: Callable[[], Any], several: bool = False) -> None:
    """Run a Hydra main function; configuration errors become one line with exit code 2.

    several: whether several processes, started by torchrun, may work on one run.

    A tracked sweep ends with a table of its jobs, and with exit code 1 unless all of them are done.
    """
    register(str(inspect.unwrap(main).__globals__["__doc__"]))
    forget_sweep()
    problem: BaseException | None = None
    with _errors_raised() as wanted_trace:
        try:
            with _followers_aside(several):
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


@contextmanager
def _followers_aside(several: bool) -> Iterator[None]:
    """Let every process of torchrun but the first work in a directory of its own that is then thrown away.

    several: whether the program can be run by several processes. Raises UserError where it cannot.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "LOCAL_RANK" not in os.environ:
        yield
        return
    if not several or {"-m", "--multirun"} & set(sys.argv):
        raise UserError("torchrun is for a single run of experiments/analyze.py; start this with python")
    if os.environ["RANK"] == "0":
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mechint-follower-") as directory:
        sys.argv += [f"output_dir={directory}", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
        yield


def _wait_for_the_others(problem: BaseException | None) -> None:
    """Wait for the Slurm jobs of a sweep that submitit gave up on because one of them died.

    They go on, but only the launcher, which the error has left, knew them. Neither Hydra nor submitit hands them to
    anyone, so they are looked up among the variables that the error came through, by their class.
    """
    if problem is None or _origin(problem) != "submitit":
        return
    from submitit import Job

    variables = [
        value for frame, _ in traceback.walk_tb(problem.__traceback__) for value in frame.f_locals.values()
    ]
    lists = [value for value in variables if isinstance(value, list)]
    jobs = {id(job): job for found in lists for job in found if isinstance(job, Job)}
    if not jobs:
        print("other jobs of the sweep may still be queued or running; squeue shows them", file=sys.stderr)
    for job in jobs.values():
        job.wait()


def _origin(problem: BaseException) -> str:
    """The package that an error comes from."""
    return type(problem).__module__.split(".")[0]


def _leave_page(sweep: Sweep) -> None:
    """Leave the page of the sweep's runs in its directory, where any of them is finished and there is room."""
    from mechint.comparison.study import read_study
    from mechint.comparison.web_page import study_page
    from mechint.reporting.web import PAGE
    from mechint.runtime.files import write_atomically

    try:
        text = study_page(read_study(sweep.directory))
        with write_atomically(sweep.directory / PAGE) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (UserError, OSError):  # no run is finished, or no room is left; compare.py makes the page later
        return
    print(f"report: {sweep.directory / PAGE}")


def _report(sweep: Sweep, problem: BaseException | None) -> int:
    """Print what became of a sweep; its exit code."""
    outcomes = sweep.outcomes()
    print(table(outcomes, sweep.directory))
    sweep.end()
    _leave_page(sweep)
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
