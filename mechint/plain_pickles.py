"""Pickles read as plain tensors and containers: whatever else is in them is refused, and never run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

LONGEST_REASON = 160


class PickleRefusedError(ValueError):
    """Why a file is not read: in one line, to stand in brackets."""


def load_plain(path: Path) -> Any:
    """Tensors, numbers, strings and containers of them, on the CPU.

    Raises PickleRefusedError for damaged files and those whose objects would need code to run; FileNotFoundError.
    """
    if path.exists() and not path.is_file():
        raise PickleRefusedError("it is not a plain file")
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise PickleRefusedError(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = str(error)
    if needed := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it would have to run code, {needed[1]}, which is refused"
    # torch wraps the actual cause in paragraphs of advice that do not apply here
    inner = re.search(r"WeightsUnpickler error:\s*([^\n]+)", text)
    return (inner[1] if inner else text.strip().split("\n")[0])[:LONGEST_REASON] or type(error).__name__
