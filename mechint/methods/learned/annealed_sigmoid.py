"""Sigmoid gates that harden while they are learned, with a price per open gate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.methods.method import LearnedMethod, MakeOptimizer

OVERSHOOT = 1.1  # the exponent of the slope ends here


@dataclass(kw_only=True)
class AnnealedSigmoid(LearnedMethod):
    """Gates sigmoid(slope s) with s from 1 and slope = 200^r, r from 0 to 1.1 over the run; open means s > 0.

    The objective gets `multiplier` times the number of open gates per layer. "Scaling sparse feature circuit finding
    to Gemma 9B" (Caples et al. 2025; helpers/utils.py): Adam, constant learning rate 0.05, no straight-through.
    Annealing: Savarese et al. 2020.

    A price has no target: the source sweeps it from 1e-4 to 100, the default is inside, and takes the circuits it gets.
    Here the final mask keeps exactly the target's count by s, whatever the price left open (`binarization_gap` in
    result.json says how many those were), so try several prices for a target.

    What else differs: the units are K and V channels and not SAE latents (a layer stands for an SAE), and the
    objective is the run's own.
    """

    meaning: ClassVar[str] = "learned logit of the gate"
    has_learning_rate: ClassVar[bool] = True
    follows_schedule: ClassVar[bool] = False  # the target is only known to the final mask
    changing: ClassVar[tuple[str, ...]] = ("_logits", "_open")
    make_optimizer: ClassVar[MakeOptimizer] = partial(torch.optim.Adam, lr=0.1)

    multiplier: float = 0.01
    learning_rate: float = 0.05
    highest_slope: float = 200.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multiplier < 0:
            raise UserError(f"mask.multiplier={self.multiplier} must not be negative; it is a price")
        if self.highest_slope < 1:
            raise UserError(f"mask.highest_slope={self.highest_slope} must be at least 1")

    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """All gates open at sigmoid(1)."""
        self._logits = torch.ones(self.units.count, device=device, requires_grad=True)
        self._open = torch.sigmoid(self._logits.detach())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """s."""
        return [{"params": [self._logits], "lr": self.learning_rate}]

    def rate(self, progress: float) -> float:
        """Constant."""
        return 1.0

    def scores(self) -> Tensor:
        """s [U]."""
        return self._logits.detach()

    def temperature_at(self, progress: float) -> float:
        """1 / slope."""
        return self.highest_slope ** (-OVERSHOOT * progress)

    def gates(self, share: float, progress: float, sequences: int) -> Tensor:
        """sigmoid(slope s), [U]."""
        self._open = torch.sigmoid(self._logits / self.temperature_at(progress))
        return self._open

    def soft_gates(self) -> Tensor:
        """The gates [U] at the final slope."""
        return torch.sigmoid(self._logits.detach() / self.temperature_at(1.0))

    def penalty(self, share: float) -> Tensor:
        """The price of the open gates."""
        return self.multiplier * self._open.sum() / len(self.units.space.layers)
