"""LeanK's two stages: scales with an L1 price, then a mask from their quantile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.methods.method import LearnedMethod, MakeOptimizer
from mechint.methods.schedules import warm_up_and_decay

FIRST_STAGE = 2000 / 2200  # of the steps
RAMP, FLOOR = 0.2, 0.1  # of a stage, for the learning rate to rise and to fall; the least of it


@dataclass(kw_only=True)
class LeanK(LearnedMethod):
    """Scales in [0, 1] under an L1 price; then those below the quantile of the target are cut, straight-through.

    LeanK (Zhang et al. 2025, MInference/LeanK/train.py and llama3.1-8b.yaml). Stage 1, 2000 of 2200 steps: scales from
    1, clamped at every step, objective + l1 * their mean. Stage 2, 200 steps: forward the scale where it is above the
    quantile and 0 where not, backward as if none were cut, no price. Both with Adam; the learning rate rises and falls
    over a fifth of each stage. The final mask keeps exactly the target's count by scale, each at full strength.

    What differs: K and V channels get scales (LeanK: K only), at every position (LeanK keeps the first and the latest
    tokens whole and prunes for decoding only); the objective is the run's own (LeanK: squared error of the last hidden
    states on passkeys); counts per head are not rounded to multiples of 32; Adam's averages live on into stage 2.
    """

    meaning: ClassVar[str] = "learned scale, from 0 to 1"
    has_learning_rate: ClassVar[bool] = True
    follows_schedule: ClassVar[bool] = False  # the target is only known to the quantile
    changing: ClassVar[tuple[str, ...]] = ("_scales",)
    make_optimizer: ClassVar[MakeOptimizer] = partial(torch.optim.Adam, lr=0.1)

    l1: float = 0.06
    learning_rate: float = 0.02
    second_learning_rate: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1 < 0 or not self.learning_rate > 0:
            raise UserError("mask.l1 must not be negative, and mask.learning_rate must be positive")

    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """All scales are 1."""
        self._scales = torch.ones(self.units.count, device=device, requires_grad=True)
        self._priced = True

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The scales."""
        return [{"params": [self._scales], "lr": self.learning_rate}]

    def rate(self, progress: float) -> float:
        """Up, level and down within each stage."""
        if progress < FIRST_STAGE:
            return warm_up_and_decay(progress / FIRST_STAGE, RAMP, RAMP, FLOOR)
        ramps = warm_up_and_decay((progress - FIRST_STAGE) / (1 - FIRST_STAGE), RAMP, RAMP, FLOOR)
        return ramps * self.second_learning_rate / self.learning_rate

    def scores(self) -> Tensor:
        """Scales [U]."""
        return self._scales.detach().clamp(0, 1)

    def gates(self, share: float, progress: float, sequences: int) -> Tensor:
        """The scales [U], in stage 2 cut at the quantile."""
        with torch.no_grad():
            self._scales.clamp_(0, 1)
        self._priced = progress < FIRST_STAGE
        if self._priced:
            return self._scales * 1.0
        return self._scales - self._scales.detach() * (~self.hard_mask()).float()

    def soft_gates(self) -> Tensor:
        """The scales [U] above the quantile; the others are 0."""
        return self.scores() * self.hard_mask()

    def penalty(self, share: float) -> Tensor | None:
        """Stage 1: the L1 price."""
        return self.l1 * self._scales.abs().mean() if self._priced else None
