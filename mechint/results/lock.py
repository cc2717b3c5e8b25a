"""One process per run's directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mechint.errors import UserError
from mechint.results.result import RESULT
from mechint.runtime.files import require_room

LOCK = ".lock"


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
    """The process that works in a directory, as far as its record tells."""
    try:
        process = json.loads((directory / RESULT).read_text(encoding="utf-8"))["process"]
        return f"process {process['pid']} on {process['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
