"""The control that every other scorer has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechint.masking.masked_model import MaskedModel
from mechint.methods.method import ScoringMethod


@dataclass(kw_only=True)
class RandomOrder(ScoringMethod):
    """K and V units in a random order: scores uniform on [0, 1), drawn from the run's seed."""

    def score(self, masked: MaskedModel, rows: Tensor, batch_size: int) -> int:
        """Draw; no token goes through the model."""
        self._scores = torch.rand(self.units.count, generator=self._generator).to(masked.device)
        return 0
