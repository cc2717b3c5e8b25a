"""Pickles read as plain tensors and containers: whatever else is in them is refused, and never run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

LONGEST_REASON = 160


class PickleRefusedError(ValueError):
    """Why a file is not read: in one line, to stand in brackets. needed: the code it would have to run, if any."""

    def __init__(self, reason: str, needed: str | None = None) -> None:
        super().__init__(reason)
        self.needed = needed


def load_plain(path: Path, mmap: bool = False) -> Any:
    """Tensors, numbers, strings and containers of them, on the CPU, memory-mapped if asked for.

    Raises PickleRefusedError for damaged files and those whose objects would need code to run; FileNotFoundError.
    """
    if path.exists() and not path.is_file():
        raise PickleRefusedError("it is not a plain file")
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise _refused(error) from error


def _refused(error: Exception) -> PickleRefusedError:
    text = str(error)
    if needed := re.search(r"GLOBAL ([\w.]+)", text):
        return PickleRefusedError(f"it would have to run code, {needed[1]}, which is refused", needed[1])
    # torch wraps the actual cause in paragraphs of advice that do not apply here
    inner = re.search(r"WeightsUnpickler error:\s*([^\n]+)", text)
    reason = (
        inner[1]
        if inner
        else f"{type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else ''}"
    )
    return PickleRefusedError(reason[:LONGEST_REASON].strip(" :"))
