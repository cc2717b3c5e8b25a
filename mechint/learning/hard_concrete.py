"""Hard concrete gates with a Lagrangian, the field's reference for a given sparsity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechint.learning.lagrangian import SparsityConstraint, mean_per_pool
from mechint.learning.method import LearnedMethod

LOW, HIGH = -0.1, 1.1  # the interval the concrete distribution is stretched to


@dataclass(kw_only=True)
class HardConcrete(LearnedMethod):
    """Random gates z = clip(1.2 sigmoid((logit u + log_alpha) / temperature) - 0.1, 0, 1), u uniform.

    The expected number of open gates is pushed to the target by a Lagrangian; the final mask keeps exactly the
    target's count by log_alpha. Louizos et al. 2018; constants of Sheared LLaMA (Xia et al. 2023) and Edge Pruning
    (Bhaskar et al. 2024).
    """

    temperature: float = 2 / 3
    initial_log_alpha: float = 5.0
    multiplier_learning_rate: float = 1.0

    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """All gates open with a probability near 1."""
        noise = 0.01 * torch.randn(self.units.count, generator=generator)
        self._generator = generator
        self._log_alpha = (self.initial_log_alpha + noise).to(device).requires_grad_()
        self._constraint = SparsityConstraint(len(self.pools.share), self.multiplier_learning_rate, device)
        self._pool = self.pools.of_unit.to(device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """log_alpha, and the multipliers, which are maximised."""
        return [{"params": [self._log_alpha]}, self._constraint.parameter_group()]

    def scores(self) -> Tensor:
        """log_alpha [U]."""
        return self._log_alpha.detach()

    def gates(self, share: float, progress: float) -> Tensor:
        """A fresh sample of the gates [U]."""
        uniform = torch.rand(self.units.count, generator=self._generator).clamp(1e-6, 1 - 1e-6)
        noise = uniform.logit().to(self._log_alpha.device)
        stretched = torch.sigmoid((noise + self._log_alpha) / self.temperature) * (HIGH - LOW) + LOW
        return stretched.clamp(0, 1)

    def penalty(self, share: float) -> Tensor:
        """The Lagrangian of the expected sparsity."""
        shift = self.temperature * math.log(-LOW / HIGH)
        open_probability = torch.sigmoid(self._log_alpha - shift)
        expected = 1 - mean_per_pool(open_probability, self._pool, len(self.pools.share))
        return self._constraint(expected, share * self.pools.share.to(expected))
