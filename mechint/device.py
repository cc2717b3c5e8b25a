"""Where a run computes."""

from __future__ import annotations

import os

import torch

from mechint.errors import UserError

# Where torch computes and holds numbers.
KINDS = ("cpu", "cuda", "mps", "xpu")


def pick_device(name: str) -> torch.device:
    """The device of a `device=` setting; "auto" is the first CUDA device, or the CPU where there is none.

    Raises UserError for a device that does not exist here.
    """
    if name == "auto":
        number = os.environ.get("LOCAL_RANK", "0")  # of torchrun, one process for each device
        return torch.device(f"cuda:{number}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name} is not known; use auto, cpu, cuda or cuda:0") from error
    if device.type not in KINDS:
        raise UserError(f"device={name} cannot compute a model; use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}: no CUDA device is available here; use device=cpu")
    return device
