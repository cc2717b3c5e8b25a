"""Finding out early that a disk is full."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOM_BYTES = 64 * 1024


def require_room(directory: Path) -> None:
    """Make the directory and raise OSError where not even a small file can be written.

    For libraries that write from a thread or process of their own and tell their caller late or never.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as probe:
        probe.write(bytes(ROOM_BYTES))
        probe.flush()
        os.fsync(probe.fileno())
