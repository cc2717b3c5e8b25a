"""Edge-popup: the best k scores, straight-through, as first published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechint.methods.method import LearnedMethod, MakeOptimizer
from mechint.methods.schedules import ConstantSchedule, Schedule


@dataclass(kw_only=True)
class EdgePopup(LearnedMethod):
    """Forward, the k units with the largest |score| are on; backward, each gets its gate's gradient.

    "What's hidden in a randomly weighted neural network?" (Ramanujan et al. 2020, hidden-networks): scores start
    Kaiming-uniform, here of U inputs, so the first mask is random and not dense; k is the target's from the first step
    on; learning rate 0.1, falling along half a cosine. The count is exact at every step.

    What differs: Adam without weight decay, as later users of the idea have it; the source has SGD with momentum 0.9
    (`optimizer=sgd`) and weight decay 1e-4. Units compete globally by default, the source's within each layer
    (`mask.scope=per_layer`).
    """

    meaning: ClassVar[str] = "size of the learned score"
    has_learning_rate: ClassVar[bool] = True
    changing: ClassVar[tuple[str, ...]] = ("_scores",)
    make_optimizer: ClassVar[MakeOptimizer] = partial(torch.optim.Adam, lr=0.1)
    schedule: ClassVar[Schedule] = ConstantSchedule()

    learning_rate: float = 0.1

    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """Uniform scores within 1 / sqrt(U) of zero: Kaiming's with a = sqrt(5)."""
        uniform = 2 * torch.rand(self.units.count, generator=generator) - 1
        self._scores = (uniform / math.sqrt(self.units.count)).to(device).requires_grad_()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The scores."""
        return [{"params": [self._scores], "lr": self.learning_rate}]

    def rate(self, progress: float) -> float:
        """Half a cosine wave, from 1 to 0."""
        return (1 + math.cos(math.pi * progress)) / 2

    def scores(self) -> Tensor:
        """|score| [U]."""
        return self._scores.detach().abs()

    def gates(self, share: float, progress: float, sequences: int) -> Tensor:
        """Hard gates [U]; their gradient is that of |score|."""
        return self.hard_mask(share).float() + (self._scores.abs() - self._scores.detach().abs())
