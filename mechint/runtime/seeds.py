"""What makes a run repeatable: seeded generators, and algorithms that give the same bits every time."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mechint.errors import UserError


def seed_everything(seed: int) -> torch.Generator:
    """Seed every generator that libraries may use, and return the one that this run draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries may draw from numpy's global generator
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside the block only deterministic algorithms are used, if that is wanted; on the CPU they always are.

    Raises UserError where an operation of a model has none.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose as it likes
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if found := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
            raise UserError(
                f"this model needs {found[1]}, which is not deterministic on its device; "
                "use trainer.deterministic=false or device=cpu"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before)
