"""What every mask method has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.masked_model import MaskedModel
from mechint.masking.units import Pools, Scope, Selection, Unit, Units, make_pools, make_units
from mechint.methods.optimizers import NormalizedSGD
from mechint.methods.schedules import CubicSchedule, Schedule
from mechint.metrics.evaluation import Evaluator

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass(kw_only=True)
class MaskMethod(ABC):
    """Which units a mask is made of, where they compete, and how a method scores them.

    unit: `channel`, `rope_pair` or `head`. scope: units compete `global`ly, `per_layer` or `per_head`. tie_kv: one
    mask for K and V. key_sparsity, value_sparsity: targets of their own. finishing_trials: how many exchanges of
    units are tried at the end (`mechint.learning.finishing`).

    A method owns scores [U]; the higher, the longer a unit is kept. Facts about a method stand on its class: meaning is
    what its scores say of a unit, in a few words for reports; make_optimizer and schedule are the ones that it is
    recommended with, and what `conf/mask` chooses for it.
    """

    meaning: ClassVar[str] = "the method's score"
    make_optimizer: ClassVar[MakeOptimizer] = partial(NormalizedSGD, lr=0.1, momentum=0.9, weight_decay=0.25)
    schedule: ClassVar[Schedule] = CubicSchedule(end=0.3)

    unit: Unit = "channel"
    scope: Scope = "global"
    tie_kv: bool = False
    key_sparsity: float | None = None
    value_sparsity: float | None = None
    finishing_trials: int = 0

    def __post_init__(self) -> None:
        if self.finishing_trials < 0:
            raise UserError(
                f"mask.finishing_trials={self.finishing_trials} must be at least 0; 0 tries nothing"
            )
        for name in ("key_sparsity", "value_sparsity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(
                    f"mask.{name}={value} must lie in [0, 1]; it is the fraction of units removed"
                )

    def prepare(
        self,
        masked: MaskedModel,
        target_sparsity: float,
        generator: torch.Generator,
        within: Tensor | None = None,
    ) -> None:
        """Make the units, their pools and fresh scores for a model; `allowed`, bool [N], are the channels of `within`.

        within: channels that may be kept at all, bool [N]; None: every channel.
        """
        self.units: Units = make_units(masked, self.unit, self.tie_kv)
        self.pools: Pools = make_pools(
            self.units, target_sparsity, self.scope, self.key_sparsity, self.value_sparsity
        )
        self.allowed = torch.ones(masked.space.num_channels, dtype=torch.bool) if within is None else within
        if within is not None:
            self.pools = self.pools.within(self.units.of_channels(within))
        self.start(masked.device, generator)

    @property
    def selection(self) -> Selection:
        """What scores are: signed, so that units that do harm come last, sizes, or ranks put together from others."""
        return "signed"

    @abstractmethod
    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """Make fresh scores."""

    @abstractmethod
    def scores(self) -> Tensor:
        """The current scores [U], detached."""

    def hard_mask(self, share: float = 1.0) -> Tensor:
        """The hard mask, bool [U], of exactly the scheduled count."""
        return self.pools.select(self.scores(), share)


class LearnedMethod(MaskMethod):
    """A method whose scores are learned by gradient descent.

    has_learning_rate: whether the method has a learning rate and its course of its own, as published recipes do.
    follows_schedule: whether the sparsity schedule concerns the method before the end. changing: names of the
    attributes, tensors all, that a step changes and that a saved state holds. avoidable: whether units can be made to
    cost something; avoided: which do, bool [U].
    """

    has_learning_rate: ClassVar[bool] = False
    follows_schedule: ClassVar[bool] = True
    changing: ClassVar[tuple[str, ...]] = ()
    avoidable: ClassVar[bool] = False
    avoided: ClassVar[Tensor | None] = None

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer updates, as torch parameter groups."""

    @abstractmethod
    def gates(self, share: float, progress: float, sequences: int) -> Tensor:
        """Gates of the next forward pass, differentiable in the scores: [U], or [B, U] for B `sequences`.

        share: the part of the target sparsity to reach now. progress: part of the run done. Both in [0, 1].
        """

    def switched_on(self, gates: Tensor) -> Tensor:
        """The units that count as kept under the latest gates, bool [U]."""
        return gates.detach() > 0.5

    def penalty(self, share: float) -> Tensor | None:
        """What is added to the objective, if anything."""
        return None

    def temperature_at(self, progress: float) -> float | None:
        """The surrogate's temperature, for methods that have one."""
        return None

    def rate(self, progress: float) -> float | None:
        """The learning rate at `progress` as a fraction of the highest; None: as the trainer has it."""
        return None

    def soft_gates(self) -> Tensor | None:
        """The final gates [U] as the forward pass has them, without noise; None where they are the hard mask."""
        return None

    def look(self, calibration: Evaluator) -> int:
        """See calibration data before the first step; return how many tokens went through the model."""
        return 0

    def final_scores(self) -> Tensor:
        """The scores [U] after the last step, from which the mask is made."""
        return self.scores()

    def warm_start(self, worth: Tensor) -> None:
        """Begin with an estimate of what every unit is worth, [U], positive; methods may do without."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that changes while it learns."""
        return {name: getattr(self, name).detach().cpu().clone() for name in self.changing}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Continue from a state; parameters stay the same objects, which the optimizer knows.

        Raises ValueError where a shape differs, KeyError where something is missing.
        """
        for name in self.changing:
            there, state = getattr(self, name), state_dict[name]
            if there.shape != state.shape:
                raise ValueError(f"{name}: shape {list(state.shape)} instead of {list(there.shape)}")
            with torch.no_grad():
                there.copy_(state)


class ScoringMethod(MaskMethod):
    """A method that computes its scores from statistics of the dense model, without learning steps.

    passes_per_row: how often every calibration sequence goes through the model; 0 where not all of them do.
    stages: how many times scores are estimated anew on the way to the target, each on `sequences_per_stage`
    sequences; 0 for methods that score once.
    """

    passes_per_row: int = 1
    stages: int = 0

    @property
    def selection(self) -> Selection:
        """Most scores are sizes."""
        return "absolute"

    def start(self, device: torch.device, generator: torch.Generator) -> None:
        """Nothing is known before `score`."""
        self._scores = torch.zeros(self.units.count, device=device)
        self._generator = generator

    def scores(self) -> Tensor:
        """Scores [U]."""
        return self._scores

    @abstractmethod
    def score(self, calibration: Evaluator) -> int:
        """Compute the scores on calibration data; return how many tokens went through the model."""


def importance(scores: Tensor) -> Tensor:
    """Rank-preserving rescaling of scores [U] to [0, 1], linear between the lowest and the highest score."""
    low, high = scores.min(), scores.max()
    if high == low:
        return torch.ones_like(scores)
    return (scores - low) / (high - low)
