"""The default method: the best k units, exactly, in every forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechint.learning.method import LearnedMethod


@dataclass(kw_only=True)
class TopK(LearnedMethod):
    """Hard top-k mask whose gradient goes straight through to the scores.

    Forward, the k units with the highest scores are on and the others off, so what is trained is what is measured.
    Backward, every score gets the gradient of its gate: of kept units what removing them would cost, of removed ones
    what taking them back would gain, both to first order. Straight-through: Bengio et al. 2013; top-k masks:
    Ramanujan et al. 2020. A finishing pass follows.
    """

    finishing_trials: int = 60

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

    def gates(self, share: float, progress: float) -> Tensor:
        """Hard gates [U]; their gradient is the scores' own."""
        return self.hard_mask(share).float() + (self._scores - self._scores.detach())
