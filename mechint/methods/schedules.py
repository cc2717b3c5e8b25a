"""How fast the target sparsity is approached, and how learning rates rise and fall."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mechint.errors import UserError

# Share of the target sparsity, in [0, 1], at a part of the run in [0, 1].
Schedule = Callable[[float], float]


@dataclass(kw_only=True)
class SparsitySchedule:
    """Share of the target sparsity, in [0, 1], as a function of a run's progress in [0, 1].

    Sparsity is 0 up to progress `begin`, rises until `end`, and stays at the target from there to the last step.

    Raises UserError unless 0 <= begin < end <= 1.
    """

    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1:
            raise UserError(
                f"sparsity_schedule.begin={self.begin} and .end={self.end} must satisfy 0 <= begin < end <= 1; "
                "they are fractions of the run"
            )

    def __call__(self, progress: float) -> float:
        """Share of the target at `progress`."""
        if progress >= self.end:
            return 1.0
        if progress <= self.begin:
            return 0.0
        return self.curve((progress - self.begin) / (self.end - self.begin))

    def curve(self, x: float) -> float:
        """The rise from 0 at x = 0 to 1 at x = 1."""
        raise AssertionError("subclasses say how sparsity rises")


class LinearSchedule(SparsitySchedule):
    """Equal steps."""

    def curve(self, x: float) -> float:
        """x."""
        return x


class CubicSchedule(SparsitySchedule):
    """Fast while much is redundant, slow near the target (Zhu and Gupta 2017)."""

    def curve(self, x: float) -> float:
        """1 - (1 - x)^3."""
        return 1 - (1 - x) ** 3


class CosineSchedule(SparsitySchedule):
    """Slow, fast, slow: half a cosine wave."""

    def curve(self, x: float) -> float:
        """(1 - cos(pi x)) / 2."""
        return (1 - math.cos(math.pi * x)) / 2


@dataclass(kw_only=True)
class ExponentialSchedule(SparsitySchedule):
    """Approaches the target as e^(-rate x), rescaled so that it arrives.

    Raises UserError unless rate > 0.
    """

    rate: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rate > 0:
            raise UserError(f"sparsity_schedule.rate={self.rate} must be positive; 5 is the default")

    def curve(self, x: float) -> float:
        """(1 - e^(-rate x)) / (1 - e^(-rate))."""
        return math.expm1(-self.rate * x) / math.expm1(-self.rate)


@dataclass(kw_only=True)
class ConstantSchedule:
    """The target from the first step on."""

    def __call__(self, progress: float) -> float:
        """1 at every progress."""
        return 1.0


def warm_up_and_decay(progress: float, warm_up: float, decay: float, floor: float = 0.0) -> float:
    """1, but rising linearly over the first `warm_up` of a run and falling over its last `decay`; at least `floor`."""
    return min(1.0, max(progress / warm_up, floor), max((1 - progress) / decay, floor))
