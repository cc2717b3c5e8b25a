"""The default method: the best k units, exactly, at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.methods.method import LearnedMethod
from mechint.methods.scoring.integrated_gradients import IntegratedGradients
from mechint.methods.scoring.scorer import scores_of
from mechint.metrics.evaluation import Evaluator

StartFrom = Literal["nothing", "integrated_gradients"]


@dataclass(kw_only=True)
class TopK(LearnedMethod):
    """Hard top-k mask whose gradient goes straight through to the scores.

    The k units with the highest scores are on and the others off. Every score gets the gradient of its gate: of removed
    units what taking them back would gain, to first order. Of a kept unit the gradient where it is fully on says little
    about its removal (at the dense model it is zero), so each sequence meets a share `perturbed` of the kept units at a
    gate drawn uniformly from [0, 1]: its gradient there is, on average, exactly what the way from 1 to 0 costs.

    Scores are counted from the threshold, so that with weight decay an early verdict fades and a unit that has
    become useful comes back. Straight-through: Bengio et al. 2013; top-k masks: Ramanujan et al. 2020. A finishing pass
    follows.

    start_from: what scores start from: `nothing`, or `integrated_gradients` of the KL on the first `start_sequences`
    calibration sequences, as in arXiv 2510.06811. avoid_weight: what keeping a unit costs, in the objective's own
    measure, that the run named by `rival_of` keeps.
    """

    meaning: ClassVar[str] = "learned score, counted from the threshold between kept and removed"
    changing: ClassVar[tuple[str, ...]] = ("_scores", "_keep")
    avoidable: ClassVar[bool] = True

    perturbed: float = 0.15
    start_from: StartFrom = "nothing"
    start_sequences: int = 32
    avoid_weight: float = 0.01
    finishing_trials: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_from not in get_args(StartFrom):
            choices = ", ".join(get_args(StartFrom))
            raise UserError(f"mask.start_from={self.start_from} is not known; use one of {choices}")
        if self.start_sequences < 1:
            raise UserError(f"mask.start_sequences={self.start_sequences} must be at least 1")
        if not 0 <= self.perturbed <= 1:
            raise UserError(
                f"mask.perturbed={self.perturbed} must lie in [0, 1]; it is a share of the kept units, e.g. 0.15"
            )

    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """All scores start equal but for a noise that only breaks ties."""
        self._generator = generator
        noise = torch.randn(self.units.count, generator=generator)
        self._scores = (1e-3 * noise).to(device).requires_grad_()
        self._keep = self.hard_mask(0.0)

    def look(self, calibration: Evaluator) -> int:
        """Integrated gradients, where scores start from them."""
        if self.start_from == "nothing":
            return 0
        found, tokens = scores_of(IntegratedGradients(), self, calibration, self.start_sequences)
        self.warm_start(found)
        return tokens

    def penalty(self, share: float) -> Tensor | None:
        """What the kept units cost that another mask keeps."""
        if self.avoided is None:
            return None
        gates = self._keep + (self._scores - self._scores.detach())  # without those that are perturbed
        return self.avoid_weight * (gates * self.avoided.to(gates.device)).sum()

    def warm_start(self, worth: Tensor) -> None:
        """Scores by the order of magnitude of a unit's worth, counted from the target's threshold and in [-1, 1]."""
        size = worth.clamp_min(1e-30).log()
        distance = (size - self.pools.thresholds(size)) / size.std().clamp_min(1e-12)
        with torch.no_grad():
            self._scores += 0.5 * distance.clamp(-2, 2).to(self._scores)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The scores."""
        return [{"params": [self._scores]}]

    def scores(self) -> Tensor:
        """Scores [U]."""
        return self._scores.detach()

    def gates(self, share: float, progress: float, sequences: int) -> Tensor:
        """Gates [B, U], hard but for the perturbed ones; their gradient is the scores' own."""
        self._keep = self.hard_mask(share)
        with torch.no_grad():
            self._scores -= self.pools.thresholds(self._scores, self._keep)
        gates = self._keep.float()
        if self.perturbed:
            shape = (2, sequences, self.units.count)
            chosen, gate = torch.rand(shape, generator=self._generator).to(gates.device)
            gates = torch.where(self._keep & (chosen < self.perturbed), gate, gates)
        return gates + (self._scores - self._scores.detach())

    def switched_on(self, gates: Tensor) -> Tensor:
        """The k units with the highest scores, bool [U]."""
        return self._keep
