"""The jobs of a sweep, followed from their own processes, and kept out of directories that hold other runs."""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mechint.config.building import plain_config, run_config, run_digest
from mechint.config.errors import USER_ERRORS, error_line, fail, in_user_words
from mechint.config.guard import or_leave
from mechint.config.jobs import (
    ON_SLURM,
    OWN_PROCESS,
    SIDE_BY_SIDE,
    choice,
    is_sweep,
    job_names,
    output_directory,
    swept,
)
from mechint.config.sweeps import Sweep, slurm_threads, threads_per_job
from mechint.errors import UserError
from mechint.results.directories import Occupant, refuse_occupied, refuse_other_run
from mechint.results.result import RESULT, Result, UnreadableResult
from mechint.runtime.signals import EXIT_CODE, Interrupted

log = logging.getLogger(__name__)

# The sweep that this process started or works for.
_sweep: Sweep | None = None


def current_sweep() -> Sweep | None:
    """The sweep that this process started or works for, if any."""
    return _sweep


def forget_sweep() -> None:
    """Begin afresh, as a program does that starts another application after the first."""
    global _sweep
    _sweep = None


class JobTracker(Callback):
    """Hydra tells it when runs, sweeps and jobs begin; it goes to the processes of parallel launchers with them."""

    def __init__(self) -> None:
        self.sweep: Sweep | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse what Hydra would only find out, or never, after it has written to the directory."""
        or_leave(_check_run, config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Find out which jobs there will be."""
        global _sweep
        self.sweep = _sweep = or_leave(_plan, config)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Tell the process of a job which sweep it works for."""
        global _sweep
        _sweep = self.sweep


def _check_run(config: DictConfig) -> None:
    if sweep := OmegaConf.select(config, "hydra.runtime.choices.sweep"):
        raise UserError(f"sweep={sweep} starts several jobs: add -m")
    if not config.output_dir:
        return
    refuse_occupied(Path(config.output_dir))
    if Occupant.of(Path(config.output_dir)).status != "free":
        refuse_other_run(Path(config.output_dir), run_config(config), run_digest(config))


def _plan(config: DictConfig) -> Sweep:
    """The sweep that a configuration describes."""
    hydra = config.hydra
    values = swept(hydra)
    jobs = None if values is None else job_names(values)
    launcher, count = str(hydra.runtime.choices["hydra/launcher"]), len(jobs or [""])
    parallel = hydra.launcher.get("n_jobs", count) or 1
    return Sweep(Path(hydra.sweep.dir).absolute(), jobs, threads_per_job(launcher, int(parallel), count))


def entry(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Report a user's error in a single run as one line with exit code 2; in a sweep, go on with the other jobs.

    A failing job of a tracked sweep logs its traceback, leaves its error in result.json, and returns NaN.
    """

    @functools.wraps(task)
    def run(config: DictConfig) -> Any:
        # Launchers send this function to their processes with copies of the globals it uses; so it uses constant ones.
        return run_task(task, config)

    return run


def run_task(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Run the task of one Hydra job; see `entry`."""
    if is_sweep() and _sweep is not None:
        return _run_job(task, config, _sweep, HydraConfig.get().job.num, output_directory())
    try:
        return task(config)
    except Exception as error:
        told = in_user_words(error)
        if is_sweep() or not isinstance(told, USER_ERRORS):
            raise
        fail(told)
    except Interrupted as interrupted:
        if is_sweep():
            raise
        if os.environ.get("RANK", "0") == "0":  # of several processes of torchrun the first speaks for all
            print(f"{interrupted}; {_how_to_go_on(config)}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None


def _how_to_go_on(config: DictConfig) -> str:
    where = output_directory()
    if config.output_dir:
        return f"{where} holds what is done, and the same command continues"
    return f"the same command with output_dir={where} continues"


def _run_job(
    task: Callable[[DictConfig], Any], config: DictConfig, sweep: Sweep, number: int, directory: Path
) -> Any:
    launcher = choice("hydra/launcher")
    if launcher in OWN_PROCESS and os.environ.get("SLURM_PROCID", "0") != "0":
        log.warning("a job needs one process only, so this one ends: set hydra.launcher.tasks_per_node=1")
        return math.nan
    _set_threads(slurm_threads() if launcher in ON_SLURM else sweep.threads)
    if launcher in SIDE_BY_SIDE:
        from mechint.runtime.device import (
            take_turns,  # here, so that showing a configuration does not import torch
        )

        take_turns(number)
    before = _written(directory)
    sweep.note(number, "running", directory)
    try:
        value = task(config)
    except BaseException as error:
        if isinstance(error, Interrupted) or isinstance(error.__context__, Interrupted):
            sweep.note(number, "interrupted", directory, error_line(error.__context__ or error))
            # The whole process is this job's. Where submitit had Slurm requeue the job, the command that asked for it
            # belongs to the job and may have been ended with it: an error returned would pass for the job's result.
            if launcher in OWN_PROCESS and isinstance(error, (Interrupted, CalledProcessError)):
                raise SystemExit(EXIT_CODE) from None
            raise
        reason = f"{type(error).__name__}: {error_line(error)}".rstrip(": ")
        if isinstance(error, Exception):
            log.error("the job failed; the sweep continues: %s", reason)
            _log_traceback(error)
            if before == _written(directory):
                _record_failure(directory, config, error)
        sweep.note(number, "failed", directory, reason)
        if not isinstance(error, Exception):
            raise
        return math.nan
    untouched = before is not None and before == _written(directory)
    sweep.note(number, "skipped" if untouched else "done", directory, gates=_gates(directory))
    return value


def _gates(directory: Path) -> str:
    """How the gates of a job's run went; nothing where it has none, or where the job leaves no run."""
    try:
        verdict = Result.read(directory).verdict
    except (OSError, UnreadableResult):
        return ""
    return "" if verdict is None else verdict.outcome


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _written(directory: Path) -> tuple[int, int] | None:
    """When the result in a directory was written; it is replaced as a whole, so its number changes too."""
    try:
        status = (directory / RESULT).stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def _log_traceback(error: Exception) -> None:
    """Write an error's traceback to the job's log file, but not to the terminal, where all jobs' lines meet."""
    text = "".join(traceback.format_exception(error))
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _record_failure(directory: Path, config: DictConfig, error: Exception) -> None:
    """Leave the error of a job that failed before its own record began, unless another run's result is there."""
    from mechint.analysis.attempt import (
        record_failure,  # here, so that showing a configuration does not import torch
    )

    if not Occupant.of(directory).gives_way_to(None):
        return
    try:
        plain = plain_config(config)
    except USER_ERRORS:
        plain = plain_config(config, resolve=False)
    record_failure(directory, plain, error)
