"""Seconds and bytes of a step, on a CUDA device and on the CPU."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping

import torch

from mechint.runtime.memory import held_bytes, peak_bytes

Step = Callable[[], None]

# The numbers of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def alternate(steps: Mapping[str, Step], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every step, `repeats` times one after the other, so that all of them see the same machine.

    On CUDA the clock is the wall's, with the device idle before and after. On the CPU it is the process's own time,
    which other processes on the same cores change least; with one thread it is the wall's on an idle machine.
    """
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = _clock(device)
            step()
            seconds[name].append(_clock(device) - start)
    return seconds


def _clock(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def extra_bytes(step: Step, device: torch.device) -> int | None:
    """Bytes that a step needs at most on top of what there was before it; None where that cannot be seen.

    On the CPU freed memory goes back to the kernel at once from the first call on, which makes steps slower: measure
    time before memory.
    """
    if device.type == "cpu" and sys.platform == "linux":
        _return_freed_memory()
    before, peak = held_bytes(device), peak_bytes(step, device)
    return None if before is None or peak is None else peak - before


def _return_freed_memory() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**16)
        libc.mallopt(M_TRIM_THRESHOLD, 0)
        libc.malloc_trim(0)
