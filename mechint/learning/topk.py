"""The default method: the best k units, exactly, in every forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechint.learning.method import LearnedMethod
from mechint.learning.schedules import Shape, Temperature


@dataclass(kw_only=True)
class TopK(LearnedMethod):
    """Hard global top-k mask with a sigmoid surrogate around the threshold.

    Forward, the k units with the highest scores are on and the others off, so what is trained is what is measured.
    Backward, the gradient of sigmoid((score - threshold) / temperature) takes the step's place, which lets units
    far from the threshold rest (straight-through: Bengio et al. 2013; top-k masks: Ramanujan et al. 2020).
    """

    temperature: Shape = "constant"
    temperature_start: float = 1.0
    temperature_end: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._temperature = Temperature(self.temperature, self.temperature_start, self.temperature_end)

    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """All scores start equal but for a noise that only breaks ties."""
        noise = torch.randn(self.units.count, generator=generator)
        self._scores = (1e-3 * noise).to(device).requires_grad_()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The scores."""
        return [{"params": [self._scores]}]

    def scores(self) -> Tensor:
        """Scores [U]."""
        return self._scores.detach()

    def temperature_at(self, progress: float) -> float:
        """Width of the surrogate, in units of score."""
        return self._temperature(progress)

    def gates(self, share: float, progress: float) -> Tensor:
        """Hard gates [U] with the surrogate's gradient."""
        hard = self.hard_mask(share)
        threshold = self.pools.thresholds(self.scores(), share)
        soft = torch.sigmoid((self._scores - threshold) / self.temperature_at(progress))
        # the sigmoid's largest slope, 1 / (4 temperature), is divided out: at the threshold the gradient passes
        # unchanged
        soft = soft * 4 * self.temperature_at(progress)
        return hard.float() + (soft - soft.detach())
