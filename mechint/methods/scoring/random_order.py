"""The control that every other method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mechint.methods.method import ScoringMethod
from mechint.metrics.evaluation import Evaluator


@dataclass(kw_only=True)
class RandomOrder(ScoringMethod):
    """K and V units in a random order: scores uniform on [0, 1), drawn from the run's seed."""

    meaning: ClassVar[str] = "a random number, which says nothing about the unit"

    def score(self, calibration: Evaluator) -> int:
        """Draw; no token goes through the model."""
        self._scores = torch.rand(self.units.count, generator=self._generator).to(calibration.masked.device)
        return 0
