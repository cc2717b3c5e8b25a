"""Straight-through sigmoid gates whose temperature falls, with a Lagrangian for the count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechint.learning.lagrangian import SparsityConstraint, mean_per_pool
from mechint.learning.method import LearnedMethod
from mechint.learning.schedules import Shape, Temperature


@dataclass(kw_only=True)
class AnnealedSigmoid(LearnedMethod):
    """Forward 1[logit > 0], backward the slope of sigmoid(logit / temperature), with the temperature annealed.

    The number of open gates is pushed to the target by a Lagrangian on the sigmoids; the final mask keeps exactly
    the target's count by logit. After continuous sparsification (Savarese et al. 2020), with a hard forward pass
    and a target.
    """

    temperature: Shape = "exponential"
    temperature_start: float = 1.0
    temperature_end: float = 0.1
    initial_logit: float = 2.0
    multiplier_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._temperature = Temperature(self.temperature, self.temperature_start, self.temperature_end)

    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """All gates open."""
        noise = 0.01 * torch.randn(self.units.count, generator=generator)
        self._logits = (self.initial_logit + noise).to(device).requires_grad_()
        self._constraint = SparsityConstraint(len(self.pools.share), self.multiplier_learning_rate, device)
        self._pool = self.pools.of_unit.to(device)
        self._soft = self._logits.detach()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The logits, and the multipliers, which are maximised."""
        return [{"params": [self._logits]}, self._constraint.parameter_group()]

    def scores(self) -> Tensor:
        """Logits [U]."""
        return self._logits.detach()

    def temperature_at(self, progress: float) -> float:
        """Temperature of the sigmoid."""
        return self._temperature(progress)

    def gates(self, share: float, progress: float) -> Tensor:
        """Hard gates [U] with the sigmoid's gradient."""
        self._soft = torch.sigmoid(self._logits / self.temperature_at(progress))
        hard = (self._logits.detach() > 0).float()
        return hard + (self._soft - self._soft.detach())

    def penalty(self, share: float) -> Tensor:
        """The Lagrangian of the sigmoids' mean."""
        expected = 1 - mean_per_pool(self._soft, self._pool, len(self.pools.share))
        return self._constraint(expected, share * self.pools.share.to(expected))
