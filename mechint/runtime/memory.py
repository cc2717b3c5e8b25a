"""How much memory there is, and how much of it some work takes, on a CUDA device and on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")  # for what psutil does not have: control groups and a peak that can be reset


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process could still take; None where that cannot be seen.

    On CUDA what the driver has left and the caching allocator does not use. On Linux what the kernel can give without
    swapping, and no more than the process's control groups allow, which is what batch systems and containers set.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if sys.platform != "linux":
        return None
    return min([psutil.virtual_memory().available, *_left_in_groups()])


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that this process holds at most while it does some work, what it held before included; None as above.

    On CUDA from the caching allocator. On Linux from the kernel: the highest resident size of the process, which it is
    asked to forget before.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    if sys.platform != "linux":
        work()
        return None
    (PROC / "self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM
    work()
    lines = (PROC / "self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))  # counted in kB


def held_bytes(device: torch.device) -> int | None:
    """Bytes that this process holds now; None as above."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss if sys.platform == "linux" else None


def _left_in_groups() -> list[int]:
    """What the limits of this process's control groups, and of those around them, leave; see cgroups(7)."""
    left = []
    for line in (PROC / "self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage = CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(root):
                break
            try:
                left.append(int((place / limit).read_text()) - int((place / usage).read_text()))
            except (OSError, ValueError):  # not mounted here, or "max": without a limit
                continue
    return [max(0, number) for number in left]
