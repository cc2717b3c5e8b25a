"""Gradients integrated from the empty to the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.units import Selection
from mechint.methods.method import ScoringMethod
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.gradients import sequence_gradients, unit_gradients
from mechint.metrics.metric import KL, NLL

IntegratedObjective = Literal["kl", "nll"]
Across = Literal["mean", "rms"]


@dataclass(kw_only=True)
class IntegratedGradients(ScoringMethod):
    """Integrated gradients of the gates, for K and V alike (Sundararajan et al. 2017; EAP-IG, Hanna et al. 2024).

    Where only some units may be kept (nested targets, a search), the path ends with these open and the others closed.

    A unit's attribution is (1 / S) sum_{s = 1..S} dL/dm at m = s / S for all units, its part of L(dense) - L(empty).
    The score is the absolute value of its mean over sequences (`across=mean`), in which sequences that disagree about a
    unit cancel, or its root mean square (`rms`), in which they do not. With `signed` it is minus the mean attribution,
    how much the unit lowers the loss, and units that raise it go first.
    path_steps: S. path_objective: L, `nll` or `kl` from the dense model, whose last step, m = 1, is zero and left out.

    Raises UserError for settings without meaning.
    """

    meaning: ClassVar[str] = "gradient of its gate, integrated from the empty to the dense model"

    path_steps: int = 5
    path_objective: IntegratedObjective = "kl"
    signed: bool = False
    across: Across = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path_steps < 2:
            raise UserError(
                f"mask.path_steps={self.path_steps} must be at least 2, for a path from empty to dense"
            )
        if self.path_objective not in get_args(IntegratedObjective):
            raise UserError(f"mask.path_objective={self.path_objective} is not known; use kl or nll")
        if self.across not in get_args(Across):
            raise UserError(f"mask.across={self.across} is not known; use mean or rms")
        if self.signed and self.across == "rms":
            raise UserError("mask.signed=true needs mask.across=mean: a root mean square has no sign")

        self.passes_per_row = self.path_steps

    @property
    def selection(self) -> Selection:
        """As asked for."""
        return "signed" if self.signed else "absolute"

    def score(self, calibration: Evaluator) -> int:
        """S passes over all sequences, with `kl` the one of the dense model forward only."""
        masked, metric = calibration.masked, NLL if self.path_objective == "nll" else KL
        total = torch.zeros(self.units.count, dtype=torch.double, device=masked.device)
        # The last step is the dense model itself, unless some units are closed for good.
        steps = self.path_steps - (self.path_objective == "kl" and bool(self.allowed.all()))
        end = self.allowed.float().to(masked.device)
        for part in torch.arange(len(calibration.batch)).split(calibration.at_once):
            batch = calibration.batch[part].to(masked.device)
            wished = calibration.dense(part) if metric.needs_dense else None
            dense = None if wished is None else partial(_same, wished)
            path = torch.zeros(len(batch), self.units.count, dtype=torch.double, device=masked.device)
            for step in range(1, steps + 1):
                gates = step / self.path_steps * end
                gradients = sequence_gradients(masked, batch, gates, metric, calibration.ablation, dense)
                path += unit_gradients(self.units, gradients).double() / self.path_steps
            total += (path if self.across == "mean" else path.square()).sum(0)
        mean = total / len(calibration.batch)
        self._scores = -mean if self.signed else mean.sqrt() if self.across == "rms" else mean.abs()
        return self.path_steps * len(calibration.batch) * calibration.batch.length


def _same(outputs: Tensor, numbers: Tensor) -> Tensor:
    """Outputs [B, T, D] of a whole batch, which stay the same along the path."""
    return outputs[numbers.to(outputs.device)]
