"""Driving an expected sparsity to its target with learned multipliers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SparsityConstraint:
    """Augmented Lagrangian l1 (t - s) + l2 (t - s)^2 of expected sparsity s and target t, per pool.

    The multipliers are learned by gradient ascent (Wang et al. 2020, Structured Pruning of Large Language Models;
    constants of Sheared LLaMA, Xia et al. 2023).
    """

    def __init__(self, num_pools: int, learning_rate: float, device: torch.device) -> None:
        self.linear = torch.zeros(num_pools, device=device, requires_grad=True)
        self.quadratic = torch.zeros(num_pools, device=device, requires_grad=True)
        self.learning_rate = learning_rate

    def parameter_group(self) -> dict[str, Any]:
        """The multipliers, as a torch parameter group that is maximised."""
        return {"params": [self.linear, self.quadratic], "lr": self.learning_rate, "maximize": True}

    def __call__(self, expected: Tensor, target: Tensor) -> Tensor:
        """Scalar penalty from expected and target sparsity [pools]."""
        gap = target - expected
        return (self.linear * gap + self.quadratic * gap.square()).sum()


def mean_per_pool(values: Tensor, pool: Tensor, num_pools: int) -> Tensor:
    """Mean of values [U] in each pool, [pools]."""
    sums = values.new_zeros(num_pools).index_add(0, pool, values)
    return sums / torch.bincount(pool, minlength=num_pools)
