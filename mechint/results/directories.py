"""Whether a run may use a directory: which run is there already, and whether another process works on it.

Finished runs are found again, and different runs never mix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from mechint.errors import UserError
from mechint.results.identity import deciding
from mechint.results.result import RESULT, Result, Status, UnreadableResult
from mechint.runtime.files import require_room, unfinished_name

MASKS = ("final_masks.safetensors", "final_masks.pt")

LOCK = ".lock"

# Figures of a run, without their suffixes.
FIGURES = (
    "*_importance",
    "circuit",
    "circuit_diagram",
    "circuit_heads",
    "circuit_patterns",
    "effective_rank",
    "layers_contact_sheet",
    "nested_sparsities",
    "sparsity_curves",
    "stability",
    "survival_map",
)

# What one run leaves beside logs; what an earlier attempt left of it goes before the next one begins.
RUN_FILES = (
    RESULT,
    *MASKS,
    "metrics.jsonl",
    "basis.safetensors",
    "channels.csv",
    "necessity.csv",
    "circuit.json",
    "units.json",
    "circuit_analysis_report.md",
    "report.html",
    "stability.safetensors",
    "evaluation.safetensors",
    *(f"{stem}.{suffix}" for stem in FIGURES for suffix in ("png", "pdf", "svg")),
    "tensorboard/events.out.tfevents.*",
)

Occupancy = Literal["free", "foreign"] | Status


@dataclass(frozen=True)
class Occupant:
    """What is in a directory: nothing (`free`), a run with its result, or files that no run here wrote (`foreign`)."""

    status: Occupancy
    result: Result | None = None

    @classmethod
    def of(cls, directory: Path) -> Occupant:
        """Look into a directory, which need not exist."""
        try:
            result = Result.read(directory)
        except FileNotFoundError:
            masks = any((directory / name).exists() for name in MASKS)
            return cls("foreign" if masks else "free")
        except UnreadableResult:
            return cls("foreign")
        return cls(result.true_status, result)

    @property
    def digest(self) -> str | None:
        """What names the run."""
        return None if self.result is None else self.result.config_digest

    def gives_way_to(self, digest: str | None) -> bool:
        """Whether a run of this digest may use the directory: it is free, its own, or of a run that failed."""
        own = digest is not None and digest == self.digest
        return own or self.status in ("free", "failed")


def finished_run(directory: Path, digest: str) -> Result | None:
    """The result of the run of this digest if it is done and its masks are still there."""
    occupant = Occupant.of(directory)
    masks = any((directory / name).exists() for name in MASKS)
    return occupant.result if occupant.status == "done" and occupant.digest == digest and masks else None


def job_name(sweep: Path, number: int, digest: str | None) -> str:
    """The directory of a sweep's job, relative to the sweep's.

    That is wherever its run is already done; else its number, with -2, -3, ... when another run has that.
    """
    if digest is not None:
        for path in sorted(sweep.rglob(RESULT)):
            if finished_run(path.parent, digest):
                return str(path.parent.relative_to(sweep))
    return next(name for name in _names(number) if Occupant.of(sweep / name).gives_way_to(digest))


def _names(number: int) -> Iterator[str]:
    yield str(number)
    yield from (f"{number}-{again}" for again in count(2))


def refuse_other_run(directory: Path, config: Mapping[str, Any], digest: str) -> None:
    """Raise UserError where a directory holds something that a run of this configuration must not replace."""
    if "\0" in str(directory):
        raise UserError(f"output_dir={str(directory)!r} contains a NUL character; give another output_dir")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"output_dir={directory} is a file; give a directory")
    occupant = Occupant.of(directory)
    if occupant.gives_way_to(digest):
        return
    if occupant.status == "foreign":
        held = "holds files of another program or a damaged result.json"
    else:
        unfinished = {"running": ", which has not finished", "interrupted": ", which was interrupted"}
        unfinished["died"] = ", which died before its end"
        there = {} if occupant.result is None else occupant.result.config
        other = _difference(there, config)
        held = f"holds another run{unfinished.get(occupant.status, '')} ({other})"
    raise UserError(f"{directory} {held}; give another output_dir, or remove that directory")


def refuse_run(directory: Path) -> None:
    """Raise UserError where the results of another kind of job would come to lie in a run's directory."""
    if any((directory / name).exists() for name in (RESULT, *MASKS)):
        raise UserError(f"{directory} holds a run; give another output_dir")


def refuse_occupied(directory: Path) -> None:
    """Raise UserError where another process works in a directory; what is not there is not made."""
    if not (directory / LOCK).exists():
        return
    with only_process(directory):
        pass


@contextmanager
def only_process(directory: Path) -> Iterator[None]:
    """Keep other processes out of a run's directory, which is made, for the length of a block.

    The operating system lets go of the lock when the process ends, however it ends. Raises UserError where another
    process holds it, or where nothing can be written.
    """
    path = directory / LOCK
    lock = FileLock(path, timeout=0)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        require_room(directory)
    except Timeout:
        raise UserError(
            f"{_owner(directory)} is working in {directory}; wait for it, or give another output_dir"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write into {directory} ({error.strerror or error}); give another output_dir"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that nobody else's goes
        lock.release()


def _owner(directory: Path) -> str:
    """The process that works in a directory, as far as its result tells."""
    occupant = Occupant.of(directory)
    process = (occupant.result and occupant.result.process) or {}
    return (
        f"process {process['pid']} on {process['host']}"
        if {"pid", "host"} <= process.keys()
        else "another process"
    )


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first keys in which two configurations differ, e.g. 'seed=0 there, 1 here'."""
    old, new = dict(_flat(deciding(there))), dict(_flat(deciding(here)))
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    if not keys:
        return "the checkpoint's content differs"
    told = ", ".join(f"{key}={old.get(key)} there, {new.get(key)} here" for key in keys[:3])
    return told + (", ..." if len(keys) > 3 else "")


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def clear_run(directory: Path) -> None:
    """Remove the files of an earlier attempt at a run, and nothing else."""
    for pattern in RUN_FILES:
        for path in directory.glob(pattern):
            path.unlink()
    for path in directory.glob(".*"):
        name = unfinished_name(path)
        if name and any(fnmatch(name, pattern) for pattern in RUN_FILES):
            path.unlink()
