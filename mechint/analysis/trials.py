"""Trying variations of a mask on evaluation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mechint.masking import Units
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.metric import KL


@dataclass(frozen=True)
class Trials:
    """Measures variations of one hard mask keep, bool [U], with an evaluator of its evaluation data."""

    evaluator: Evaluator
    units: Units
    keep: Tensor

    @property
    def tokens(self) -> int:
        """Predicted tokens that each variation is measured on."""
        return self.evaluator.batch.size

    def kl(self, flips: Sequence[Tensor]) -> Tensor:
        """KL(dense || masked), double [flips, M], mean over the positions of every sequence, in nats.

        flips: for each variation the numbers of the units that it switches over.
        """
        return self.evaluator([self._gates(flipped) for flipped in flips], [KL])[:, 0]

    def _gates(self, flipped: Tensor) -> Tensor:
        keep = self.keep.cpu().clone()
        keep[flipped] = ~keep[flipped]
        return self.units.to_channels(keep.float())
