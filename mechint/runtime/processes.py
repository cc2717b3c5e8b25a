"""Which process works on a run, and whether it is still there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil

# A start is worked out from the clock, which may be set right meanwhile; no process id comes back so soon.
SAME_START = 2.0


def this_process() -> dict[str, Any]:
    """What names this process: host, process id and when it started, in seconds since 1970.

    A process id is used again after a while, and after a restart of the machine; the start tells such a stranger
    from the process that was meant.
    """
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def has_died(process: object) -> bool:
    """Whether the process that `this_process` described is known to be gone; False where nobody here can know."""
    if not isinstance(process, Mapping) or process.get("host") != socket.gethostname():
        return False
    pid, started = process.get("pid"), process.get("started")
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    try:
        found = psutil.Process(pid)
        if found.status() == psutil.STATUS_ZOMBIE:  # it has ended, and its parent has not asked how
            return True
        # Runs of an earlier version tell their start in another way, as text.
        return isinstance(started, (int, float)) and abs(found.create_time() - started) > SAME_START
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
