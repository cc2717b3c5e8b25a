"""The jobs of a sweep: what became of each of them, wherever they ran, and how many cores each may use."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mechint.runtime.files import write_json

Status = Literal["done", "skipped", "failed", "interrupted", "running", "not started"]

# What the table says of jobs that left no word of their end.
UNFINISHED = {"running": "died or still running", "not started": "never started"}


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    directory: relative to the sweep's. gates: how they went, in words. reason: why it is not done.
    """

    number: int
    overrides: str
    status: Status
    directory: str = ""
    reason: str = ""
    gates: str = ""


@dataclass(frozen=True)
class Sweep:
    """A sweep as its jobs see it, also in other processes and on other machines with the same file system.

    jobs: the overrides of each job, None where only the sweeper knows them. threads: CPU threads for each job,
    None to leave torch's choice. Jobs say how far they are in small files, which `end` removes.
    """

    directory: Path
    jobs: list[str] | None
    threads: int | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def _notes(self) -> Path:
        return self.directory / f".jobs-{self.token}"

    @property
    def begun(self) -> bool:
        """Whether a job has begun."""
        return self._notes.is_dir()

    def note(self, number: int, status: Status, directory: Path, reason: str = "", gates: str = "") -> None:
        """Say how far a job is and how its gates went; called by the job."""
        name = os.path.relpath(directory, self.directory)
        note = {"status": status, "directory": name, "reason": reason, "gates": gates}
        write_json(self._notes / f"{number}.json", note)

    def outcomes(self) -> list[Outcome]:
        """What became of every job."""
        notes = {int(path.stem): json.loads(path.read_text()) for path in self._notes.glob("[0-9]*.json")}
        numbers = range(len(self.jobs)) if self.jobs is not None else sorted(notes)
        outcomes = []
        for number in numbers:
            note = notes.get(number, {"status": "not started", "directory": "", "reason": "", "gates": ""})
            reason = note["reason"] or UNFINISHED.get(note["status"], "")
            overrides = self.jobs[number] if self.jobs is not None else ""
            outcomes.append(
                Outcome(number, overrides, note["status"], note["directory"], reason, note["gates"])
            )
        return outcomes

    def end(self) -> None:
        """Remove the notes."""
        shutil.rmtree(self._notes, ignore_errors=True)


def succeeded(outcomes: Sequence[Outcome]) -> bool:
    """Whether the result of every job is there."""
    return all(outcome.status in ("done", "skipped") for outcome in outcomes)


def table(outcomes: Sequence[Outcome], directory: Path) -> str:
    """What became of a sweep, in one line per job below a line with the counts."""
    statuses = [outcome.status for outcome in outcomes]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    rows = [["job", "status", "directory", "overrides"]]
    rows += [[str(job.number), job.status, job.directory, job.overrides] for job in outcomes]
    for column in ("gates", "reason"):
        told = [getattr(job, column) for job in outcomes]
        if any(told):
            rows = [[*row, cell] for row, cell in zip(rows, [column, *told], strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([f"sweep {directory}: {counts}", *(f"  {line}".rstrip() for line in lines)])


def threads_per_job(launcher: str, parallel: int, jobs: int) -> int | None:
    """CPU threads for each of the jobs that a launcher runs at once on this machine.

    launcher: an option of `hydra/launcher`. parallel: how many at once; negative counts back from all cores
    (-1 is all of them), as joblib does. None where a job has the machine to itself, where the launcher's jobs run on
    other machines, and where the user decided by OMP_NUM_THREADS.
    """
    if launcher not in ("joblib", "submitit_local") or "OMP_NUM_THREADS" in os.environ:
        return None
    cores = usable_cores()
    at_once = max(1, cores + 1 + parallel) if parallel < 0 else max(1, parallel)
    return max(1, cores // min(at_once, max(1, jobs)))


def slurm_threads() -> int | None:
    """CPU threads that Slurm gave to this task; None outside Slurm, or where the user decided by OMP_NUM_THREADS."""
    if "SLURM_JOB_ID" not in os.environ or "OMP_NUM_THREADS" in os.environ:
        return None
    cores = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
    return int(cores) if cores and cores.isdigit() else None


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
