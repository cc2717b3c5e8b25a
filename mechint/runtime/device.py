"""Where a run computes."""

from __future__ import annotations

import os

import torch

from mechint.errors import UserError

# Where torch computes and holds numbers.
KINDS = ("cpu", "cuda", "mps", "xpu")


_turn = 0


def take_turns(number: int) -> None:
    """Let `auto` mean the CUDA device whose turn it is, for job `number` of several that run side by side here."""
    global _turn
    _turn = number


def pick_device(name: str) -> torch.device:
    """The device of a `device=` setting; "auto" is a CUDA device, or the CPU where there is none.

    Of several CUDA devices it is torchrun's for this process, else the one that `take_turns` chose, else the first.
    Raises UserError for a device that does not exist here.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # of torchrun, which starts one process for each device
        number = int(os.environ.get("LOCAL_RANK", _turn % torch.cuda.device_count()))
        return torch.device(f"cuda:{number}")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name} is not known; use auto, cpu, cuda or cuda:0") from error
    if device.type not in KINDS:
        raise UserError(f"device={name} cannot compute a model; use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}: no CUDA device is available here; use device=cpu")
    return device
