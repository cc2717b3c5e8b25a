"""Which process works on a run, and whether it is still there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """What names this process: host, process id and, where the system tells it, when it started.

    A process id is used again after a while, and after a restart of the machine; the start tells such a stranger
    from the process that was meant.
    """
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def has_died(process: object) -> bool:
    """Whether the process that `this_process` described is known to be gone; False where nobody here can know."""
    if not isinstance(process, Mapping) or process.get("host") != socket.gethostname():
        return False
    pid = process.get("pid")
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    if not _exists(pid):
        return True
    started = _started(pid)
    return started is not None and process.get("started") not in (None, started)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks of this boot; None where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The second field, the program's name in brackets, may hold anything, brackets and blanks included.
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state == "Z" else f"{boot[:8]}:{fields[18]}"
