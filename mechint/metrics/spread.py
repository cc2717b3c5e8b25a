"""One number over several runs that differ only in the seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A number of one run, or of each of several runs; values that a run lacks are left out beforehand."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        assert self.values, "a spread needs at least one value; use Spread.of, which gives None"

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The finite numbers among `values`; None where there is none."""
        finite = tuple(float(value) for value in values if value is not None and math.isfinite(value))
        return cls(finite) if finite else None

    @property
    def n(self) -> int:
        """How many runs gave a number."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return math.fsum(self.values) / self.n

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation (divisor n - 1); None for a single run."""
        if self.n < 2:
            return None
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.values) / (self.n - 1))

    def overlaps(self, other: Spread) -> bool:
        """Whether the ranges from smallest to largest value have a point in common."""
        return self.low <= other.high and other.low <= self.high

    def as_record(self) -> dict[str, object]:
        """mean, sd (null for one run), n and the values, for JSON."""
        return {"mean": self.mean, "sd": self.sd, "n": self.n, "values": list(self.values)}
