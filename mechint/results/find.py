"""Finding the runs below a directory by their result.json, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mechint.errors import UserError
from mechint.results.identity import RESULT, SCHEMA_VERSION
from mechint.runtime.files import parse_json, read_text

# What a logger leaves inside a run may hold thousands of files and never a run.
SKIPPED = frozenset({"wandb", "__pycache__"})


class Unreadable(Exception):
    """A result.json that says nothing: damaged, cut short or foreign. The text is one line."""


def run_directories(root: Path) -> list[Path]:
    """Every directory from `root` down that holds a result.json, in natural order; hidden ones are skipped.

    Raises UserError where `root` is no directory.
    """
    if not root.is_dir():
        raise UserError(f"there is no directory {root}; give the output directory of a run or of a sweep")
    return sorted(_walk(root), key=lambda path: natural(str(path)))


def _walk(root: Path) -> Iterator[Path]:
    for directory, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".") and name not in SKIPPED]
        if RESULT in files:
            yield Path(directory)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which run 2 comes before run 10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def read_result(directory: Path) -> dict[str, Any]:
    """The content of a directory's result.json.

    Raises Unreadable where it is not the record of a run that this version understands.
    """
    try:
        result = parse_json(read_text(directory / RESULT))
    except (OSError, ValueError) as error:
        raise Unreadable(one_line(error)) from error
    if not isinstance(result, dict) or "status" not in result:
        raise Unreadable("not written by an analysis")
    version = result.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise Unreadable(f"schema version {version}, this program knows versions up to {SCHEMA_VERSION}")
    return result


def newest_of_each(directories: list[tuple[Path, dict[str, Any]]]) -> tuple[list[Path], list[str]]:
    """Of finished runs with the same digest only the one that finished last, and a note for each left out."""
    kept: dict[object, tuple[Path, dict[str, Any]]] = {}
    notes = []
    for directory, result in directories:
        digest = result.get("config_digest") or str(directory)
        other = kept.get(digest)
        if other is None:
            kept[digest] = (directory, result)
            continue
        older, newer = sorted([other, (directory, result)], key=lambda run: str(run[1].get("finished") or ""))
        kept[digest] = newer
        notes.append(f"{older[0]} is left out: {newer[0]} repeats it (digest {digest}) and finished later.")
    return [directory for directory, _ in kept.values()], notes


def summary_note(directory: Path, result: Mapping[str, Any]) -> str | None:
    """Why a finished run is not counted beside others: it sums up runs of several seeds or targets, which are."""
    if result.get("stability"):
        return f"{directory} is left out: it is the consensus of the runs below it, which are counted themselves."
    if result.get("nested"):
        return f"{directory} is left out: it sums up the nested runs below it, which are counted themselves."
    return None


def one_line(text: object) -> str:
    """The text without line breaks, cut to a readable length."""
    return " ".join(str(text).split())[:200]
