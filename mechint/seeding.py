"""Every generator that a run may draw from, seeded."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> torch.Generator:
    """Seed every generator that libraries may use, and return the one that this run draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries may draw from numpy's global generator
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)
