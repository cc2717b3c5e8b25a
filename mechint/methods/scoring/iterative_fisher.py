"""Fisher scores estimated again and again while units are removed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.masked_model import MaskedModel
from mechint.methods.method import ScoringMethod
from mechint.methods.schedules import CubicSchedule
from mechint.metrics.gradients import gate_gradients, unit_gradients


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

    stages: int = 30
    sequences_per_stage: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages < 1 or self.sequences_per_stage < 1:
            raise UserError("mask.stages and mask.sequences_per_stage must be at least 1")

    @property
    def passes_per_row(self) -> int:
        """Every stage draws rows of its own."""
        return 0

    def score(self, masked: MaskedModel, rows: Tensor, batch_size: int) -> int:
        """Forward and backward passes over S * sequences_per_stage of rows [N, T + 1]; returns their tokens."""
        schedule, device = CubicSchedule(), masked.device
        pool = self.pools.of_unit.to(device)
        kept = torch.ones(self.units.count, dtype=torch.bool, device=device)
        quotas, final, tokens = self.pools.quotas(0.0), self.pools.quotas(1.0), 0
        self._scores = torch.zeros(self.units.count, dtype=torch.double, device=device)
        for stage in range(1, self.stages + 1):
            chosen = rows[torch.randperm(len(rows), generator=self._generator)[: self.sequences_per_stage]]
            fisher = self._fisher(masked, chosen, batch_size, kept)
            tokens += chosen[:, 1:].numel()
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

    def _fisher(self, masked: MaskedModel, rows: Tensor, batch_size: int, kept: Tensor) -> Tensor:
        """E over sequences of (dNLL/dm)^2 under the mask kept [U], for all units, [U]."""
        gates = self.units.to_channels(kept.float())
        sums = torch.zeros(self.units.count, dtype=torch.double, device=masked.device)
        for batch in rows.split(batch_size):
            sums += unit_gradients(self.units, gate_gradients(masked, batch, gates)).double().square().sum(0)
        return sums / len(rows)
