"""Hard concrete gates with a Lagrangian, the field's reference for a given sparsity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechint.methods.learned.lagrangian import SparsityConstraint, mean_per_pool
from mechint.methods.method import LearnedMethod, MakeOptimizer
from mechint.methods.schedules import LinearSchedule, Schedule, warm_up_and_decay

LOW, HIGH = -0.1, 1.1  # the interval the concrete distribution is stretched to
NEVER = 1e-6  # uniform draws keep this distance from 0 and 1
WARM_UP = 200 / 3000  # of the run, until the learning rate is there; from then on it falls to 0
SHRINK = 0.8  # of log_alpha, in the gates without noise


@dataclass(kw_only=True)
class HardConcrete(LearnedMethod):
    """Random gates z = clip(1.2 sigmoid((logit u + log_alpha) / temperature) - 0.1, 0, 1), u uniform.

    A Lagrangian pushes the sparsity of the drawn gates to a target that rises linearly over the first 5/6 of the run.
    Louizos et al. 2018, as in Edge Pruning (Bhaskar et al. 2024, ioi_sweep.sh): log_alpha ~ N(10, 0.01), AdamW with
    weight decay 0.01, one learning rate for log_alpha and multipliers. Sheared LLaMA (Xia et al. 2023) has the same
    limits, temperature and Lagrangian with log_alpha from 5, learning rate 1 and the gates' expected sparsity
    (`expected_sparsity`), which reaches its target in fewer steps, since gates at 0 or 1 count as well.

    What differs: the units are K and V channels, what is removed becomes zero or its mean and not another prompt's
    activation, every position counts, gradients are not clipped, fractions stand for its 200, 2500 and 3000 steps, and
    the final mask keeps exactly the target's count by log_alpha, where the source searches a threshold.
    """

    meaning: ClassVar[str] = "learned log_alpha: the higher, the likelier the gate is open"
    has_learning_rate: ClassVar[bool] = True
    changing: ClassVar[tuple[str, ...]] = ("_log_alpha", "_drawn", "_linear", "_quadratic")
    make_optimizer: ClassVar[MakeOptimizer] = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.01)
    schedule: ClassVar[Schedule] = LinearSchedule(end=2500 / 3000)

    temperature: float = 2 / 3
    initial_log_alpha: float = 10.0
    learning_rate: float = 0.8
    multiplier_learning_rate: float = 0.8
    expected_sparsity: bool = False

    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """All gates open with a probability near 1."""
        noise = 0.01 * torch.randn(self.units.count, generator=generator)
        self._generator = generator
        self._log_alpha = (self.initial_log_alpha + noise).to(device).requires_grad_()
        self._constraint = SparsityConstraint(len(self.pools.share), self.multiplier_learning_rate, device)
        self._linear, self._quadratic = self._constraint.linear, self._constraint.quadratic
        self._pool = self.pools.of_unit.to(device)
        self._drawn = torch.ones_like(self._log_alpha)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """log_alpha, and the multipliers, which are maximised."""
        return [
            {"params": [self._log_alpha], "lr": self.learning_rate},
            self._constraint.parameter_group(),
        ]

    def rate(self, progress: float) -> float:
        """Linear warm-up, then linear decay to 0."""
        return warm_up_and_decay(progress, WARM_UP, 1 - WARM_UP)

    def scores(self) -> Tensor:
        """log_alpha [U]."""
        return self._log_alpha.detach()

    def gates(self, share: float, progress: float, sequences: int) -> Tensor:
        """A fresh sample of the gates [U]."""
        uniform = torch.rand(self.units.count, generator=self._generator).clamp(NEVER, 1 - NEVER)
        noise = uniform.logit().to(self._log_alpha.device)
        stretched = torch.sigmoid((noise + self._log_alpha) / self.temperature) * (HIGH - LOW) + LOW
        self._drawn = stretched.clamp(0, 1)
        return self._drawn

    def soft_gates(self) -> Tensor:
        """Gates [U] without noise: sigmoid(0.8 log_alpha / temperature), with as many at 0 as are expected to be."""
        closed = int(self._closed_probability().detach().sum().round())
        gates = torch.sigmoid(SHRINK * self._log_alpha.detach() / self.temperature)
        gates[gates.argsort()[:closed]] = 0
        return gates

    def penalty(self, share: float) -> Tensor:
        """The Lagrangian of the drawn gates' sparsity, or of the expected one."""
        closed = self._closed_probability() if self.expected_sparsity else 1 - self._drawn
        sparsity = mean_per_pool(closed, self._pool, len(self.pools.share))
        return self._constraint(sparsity, share * self.pools.share.to(sparsity))

    def _closed_probability(self) -> Tensor:
        """P(z = 0) of every gate [U]."""
        return torch.sigmoid(self.temperature * math.log(-LOW / HIGH) - self._log_alpha)
