"""Files that are written whole or not at all, and texts that strangers may have written."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# No record of a run and no log of its steps comes near this.
LARGEST_TEXT = 2**28

# A file of this size shows that a disk has room for small files.
ROOM_BYTES = 64 * 1024


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; it becomes `path` only when the block succeeds.

    Readers therefore see the former file or the new one, never half of either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished_name(path: Path) -> str | None:
    """What a temporary file of `write_atomically` was to become; None for other files.

    A process that is killed leaves it behind.
    """
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}(\.\w+)?", path.name)
    return found and found[1] + (found[2] or "")


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: paths become strings, non-finite floats become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as indented JSON, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_text(path: Path) -> str:
    """The text of a file that a stranger may have put there: a plain file, and not too large to be one of ours.

    Raises OSError or ValueError.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a plain file")
    if status.st_size > LARGEST_TEXT:
        raise ValueError(f"it is larger than {LARGEST_TEXT / 2**20:.0f} MiB")
    return path.read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """What JSON text says. Raises ValueError, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def one_entry(told: Mapping[str, Any]) -> dict[str, str]:
    """Metadata for a safetensors header, in one entry: several would come in an order that changes from run to run."""
    return {"mechint": json.dumps(told)}


def told_in(header: Mapping[str, str] | None) -> dict[str, Any]:
    """What `one_entry` told, from a safetensors header. Raises ValueError or KeyError where it tells nothing."""
    header = header or {}
    if "mechint" in header:
        return dict(parse_json(header["mechint"]))
    # Files written before there was one entry have these.
    return {name: parse_json(header[name]) for name in ("layers", "parts") if name in header}


def require_room(directory: Path) -> None:
    """Make the directory and raise OSError where not even a small file can be written.

    For libraries that write from a thread or process of their own and tell their caller late or never.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as probe:
        probe.write(bytes(ROOM_BYTES))
        probe.flush()
        os.fsync(probe.fileno())
