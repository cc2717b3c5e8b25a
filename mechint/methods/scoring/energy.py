"""Directions in the order in which their basis has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mechint.errors import UserError
from mechint.methods.method import ScoringMethod
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.gradients import unit_gradients


@dataclass(kw_only=True)
class Energy(ScoringMethod):
    """What each direction is worth to the basis that chose it, for K and V alike; a unit's score is the sum.

    With `basis=principal` this is low-rank compression as it is done without learning: Palu (Chang et al. 2024),
    EigenAttention (Saxena et al. 2024), ThinK after PCA.

    Raises UserError for a basis that does not say what its directions are worth.
    """

    meaning: ClassVar[str] = "what the direction is worth to its basis"

    passes_per_row = 0  # what the basis measured is enough

    def score(self, calibration: Evaluator) -> int:
        """Take the basis's own numbers; no token goes through the model."""
        basis = calibration.masked.basis
        if basis is None or basis.energy is None:
            raise UserError(
                "mask=energy orders the directions of a basis; use basis=principal or learned with it"
            )
        self._scores = unit_gradients(self.units, basis.energy[None].to(calibration.masked.device))[0]
        return 0
