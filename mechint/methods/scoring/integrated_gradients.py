"""Gradients integrated from the empty to the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.masked_model import MaskedModel
from mechint.methods.method import ScoringMethod
from mechint.metrics.gradients import SequenceLoss, gate_gradients, sequence_nll, unit_gradients
from mechint.metrics.objectives import kl_per_position

IntegratedObjective = Literal["kl", "nll"]


@dataclass(kw_only=True)
class IntegratedGradients(ScoringMethod):
    """Integrated gradients of the gates, for K and V alike (Sundararajan et al. 2017; EAP-IG, Hanna et al. 2024).

    A unit's attribution is (1 / S) sum_{s = 1..S} dL/dm at m = s / S for all units, its part of L(dense) - L(empty).
    The score is its absolute value; with `signed` it is minus the attribution, how much the unit lowers the loss, and
    units that raise it go first.
    path_steps: S. path_objective: L, `nll` or `kl` from the dense model, whose last step, m = 1, is zero and left out.

    Raises UserError for settings without meaning.
    """

    path_steps: int = 5
    path_objective: IntegratedObjective = "kl"
    signed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path_steps < 2:
            raise UserError(
                f"mask.path_steps={self.path_steps} must be at least 2, for a path from empty to dense"
            )
        if self.path_objective not in get_args(IntegratedObjective):
            raise UserError(f"mask.path_objective={self.path_objective} is not known; use kl or nll")

    @property
    def passes_per_row(self) -> int:
        """The points on the way."""
        return self.path_steps

    def score(self, masked: MaskedModel, rows: Tensor, batch_size: int) -> int:
        """S passes over rows [N, T + 1], with `kl` the one of the dense model forward only; returns S * N * T."""
        total = torch.zeros(self.units.count, dtype=torch.double, device=masked.device)
        steps = self.path_steps if self.path_objective == "nll" else self.path_steps - 1
        for batch in rows.split(batch_size):
            loss = sequence_nll(masked) if self.path_objective == "nll" else kl_from_dense(masked, batch)
            for step in range(1, steps + 1):
                gates = torch.full((masked.space.num_channels,), step / self.path_steps)
                gradients = gate_gradients(masked, batch, gates, loss)
                total += unit_gradients(self.units, gradients).double().sum(0)
        attribution = total / (self.path_steps * len(rows))
        self._scores = -attribution if self.signed else attribution.abs()
        return self.path_steps * rows[:, 1:].numel()


@torch.no_grad()
def kl_from_dense(masked: MaskedModel, batch: Tensor) -> SequenceLoss:
    """Mean over positions of KL(dense || masked) of every sequence, as a loss for rows [B, T + 1]."""
    dense = masked.hidden(batch[:, :-1].to(masked.device))
    return lambda hidden, _: kl_per_position(dense, hidden, masked.head).mean(1)
