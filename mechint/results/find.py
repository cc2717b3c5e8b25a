"""Finding the runs below a directory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mechint.errors import UserError
from mechint.results.result import RESULT, Result

# What a logger leaves inside a run may hold thousands of files and never a run.
SKIPPED = frozenset({"wandb", "__pycache__"})


def run_directories(root: Path, names: Sequence[str] = (RESULT,)) -> list[Path]:
    """Every directory from `root` down that holds a file of these names, in natural order; hidden ones are skipped.

    Raises UserError where `root` is no directory.
    """
    if not root.is_dir():
        raise UserError(f"there is no directory {root}; give the output directory of a run or of a sweep")
    return sorted(_walk(root, names), key=lambda path: natural(str(path)))


def _walk(root: Path, names: Sequence[str]) -> Iterator[Path]:
    for directory, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".") and name not in SKIPPED]
        if not set(names).isdisjoint(files):
            yield Path(directory)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which run 2 comes before run 10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def newest_of_each(directories: list[tuple[Path, Result]]) -> tuple[list[Path], list[str]]:
    """Of finished runs with the same digest only the one that finished last, and a note for each left out."""
    kept: dict[str, tuple[Path, Result]] = {}
    notes = []
    for directory, result in directories:
        digest = result.config_digest or str(directory)
        other = kept.get(digest)
        if other is None:
            kept[digest] = (directory, result)
            continue
        older, newer = sorted([other, (directory, result)], key=lambda run: run[1].finished or "")
        kept[digest] = newer
        notes.append(f"{older[0]} is left out: {newer[0]} repeats it (digest {digest}) and finished later.")
    return [directory for directory, _ in kept.values()], notes


def summary_note(directory: Path, result: Result) -> str | None:
    """Why a finished run is not counted beside others: it sums up runs of several seeds or targets, which are."""
    if result.stability:
        return f"{directory} is left out: it is the consensus of the runs below it, which are counted themselves."
    if result.nested:
        return f"{directory} is left out: it sums up the nested runs below it, which are counted themselves."
    return None
