"""Fisher scores estimated again and again while units are removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.methods.method import ScoringMethod
from mechint.methods.schedules import CubicSchedule
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.gradients import unit_gradients
from mechint.metrics.metric import NLL


@dataclass(kw_only=True)
class IterativeFisher(ScoringMethod):
    """Removes units in stages, each time by the Fisher information of the gates that are left, for K and V alike.

    Stage i of S removes the units with the least E over sequences of (dNLL/dm)^2 under the current hard mask, down to
    the count of the cubic schedule 1 - (1 - i / S)^3 of the target; what is removed never returns. A unit's score is
    the stage of its removal and, inside a stage, its rank by Fisher; kept units are on top. After Theis et al. 2018,
    with the schedule of Zhu and Gupta 2017.
    stages: S. sequences_per_stage: how many calibration sequences, drawn anew, a stage is estimated on.

    Raises UserError unless both are positive.
    """

    meaning: ClassVar[str] = "stage at which it was removed, then squared gradient of its gate"

    passes_per_row = 0  # every stage draws sequences of its own

    stages: int = 30
    sequences_per_stage: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages < 1 or self.sequences_per_stage < 1:
            raise UserError("mask.stages and mask.sequences_per_stage must be at least 1")

    def score(self, calibration: Evaluator) -> int:
        """Forward and backward passes over S * sequences_per_stage sequences."""
        schedule, device, count = CubicSchedule(), calibration.masked.device, len(calibration.batch)
        pool = self.pools.of_unit.to(device)
        kept = torch.ones(self.units.count, dtype=torch.bool, device=device)
        quotas, final, tokens = self.pools.quotas(0.0), self.pools.quotas(1.0), 0
        self._scores = torch.zeros(self.units.count, dtype=torch.double, device=device)
        for stage in range(1, self.stages + 1):
            chosen = torch.randperm(count, generator=self._generator)[: self.sequences_per_stage]
            fisher = self._fisher(calibration, chosen, kept)
            tokens += len(chosen) * calibration.batch.length
            # rounding may give a place back to a pool on the way, but what is removed stays removed
            quotas = torch.minimum(
                quotas, torch.maximum(self.pools.quotas(schedule(stage / self.stages)), final)
            )
            ranks = self.pools.ranks(fisher.masked_fill(~kept, -torch.inf))
            now = ranks < quotas.to(device)[pool]
            within = fisher.argsort(stable=True).argsort() / self.units.count  # in [0, 1), ascending
            self._scores[kept] = (stage + now.double() + within)[kept]
            kept = now
        return tokens

    def _fisher(self, calibration: Evaluator, chosen: Tensor, kept: Tensor) -> Tensor:
        """E over sequences of (dNLL/dm)^2 under the mask kept [U], for all units, [U]."""
        gates = self.units.to_channels(kept.float())
        sums = torch.zeros(self.units.count, dtype=torch.double, device=calibration.masked.device)
        for part in chosen.split(calibration.at_once):
            gradients = unit_gradients(self.units, calibration.part_gradients(part, gates, NLL))
            sums += gradients.double().square().sum(0)
        return sums / len(chosen)
