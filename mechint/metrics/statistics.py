"""Whether two sides differ, with a known rate of false claims, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

# Of all that one comparison claims together (Holm 1979).
ALPHA = 0.05

# Fewer runs on a side allow no verdict.
FEWEST_SEEDS = 4

Verdict = Literal["higher", "lower", "not distinguished", "too few seeds", "not tested"]


@dataclass(frozen=True)
class Effect:
    """A difference of means, other - reference, with its 95 % confidence interval.

    p: two-sided, of Welch's t test; None where nothing varies, so that there is no test. seeds: runs of the smaller
    side. paired: whether the evaluation sequences of both sides are the same, so that their differences count. error:
    standard error of the difference; with a single run on a side that of the shared sequences alone, None without them.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    seeds: int
    paired: bool = False
    error: float | None = None

    def verdict(self, adjusted: float | None) -> Verdict:
        """What may be claimed with an adjusted p value."""
        if self.seeds < FEWEST_SEEDS:
            return "too few seeds"
        if adjusted is None:
            return "not tested"
        if adjusted > ALPHA:
            return "not distinguished"
        return "higher" if self.difference > 0 else "lower"


def compare_means(
    reference: Sequence[float],
    other: Sequence[float],
    by_sequence: tuple[np.ndarray, np.ndarray] | None = None,
) -> Effect:
    """Welch's test of the runs of two sides; sequences that both were measured on count as well.

    reference, other: a number of every run. by_sequence: the same number of every run and evaluation sequence,
    [runs, M] for each side, in the same order of sequences. Runs and sequences are both samples: the variance of the
    difference is that between runs plus that of the sequences' differences, less what in these is noise between runs
    already (two-way random effects). Degrees of freedom after Satterthwaite (1946).
    """
    sides = [np.asarray(side, dtype=float) for side in (reference, other)]
    difference = float(sides[1].mean() - sides[0].mean())
    seeds = min(len(side) for side in sides)
    if seeds < 2:
        alone = None
        if by_sequence is not None and by_sequence[0].shape[1] > 1:
            changes = by_sequence[1].mean(0) - by_sequence[0].mean(0)
            alone = float(changes.std(ddof=1)) / math.sqrt(len(changes))
        return Effect(difference, None, None, None, seeds, by_sequence is not None, alone)
    parts = [(float(side.var(ddof=1)) / len(side), len(side) - 1) for side in sides]
    if by_sequence is not None and (sequences := by_sequence[0].shape[1]) > 1:
        parts.append((_sequence_variance(*by_sequence), sequences - 1))
    variance = math.fsum(part for part, _ in parts)
    if variance <= 0:
        return Effect(difference, difference, difference, None, seeds, by_sequence is not None, 0.0)
    freedom = variance**2 / math.fsum(part**2 / degrees for part, degrees in parts)
    error = math.sqrt(variance)
    p = float(2 * stats.t.sf(abs(difference) / error, freedom))
    width = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    return Effect(
        difference, difference - width, difference + width, p, seeds, by_sequence is not None, error
    )


def _sequence_variance(reference: np.ndarray, other: np.ndarray) -> float:
    """Variance of the mean difference over sequences [runs, M] that is not noise between runs."""
    differences = other.mean(0) - reference.mean(0)  # [M]
    noise = math.fsum(float(side.var(axis=0, ddof=1).mean()) / len(side) for side in (reference, other))
    return max(0.0, float(differences.var(ddof=1)) - noise) / len(differences)


def adjusted(p_values: Iterable[float | None]) -> list[float | None]:
    """Holm's adjusted p values: the chance of any false claim among all of them stays below ALPHA."""
    given = list(p_values)
    known = [(p, place) for place, p in enumerate(given) if p is not None]
    result: list[float | None] = [None] * len(given)
    highest = 0.0
    for rank, (p, place) in enumerate(sorted(known)):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        result[place] = highest
    return result


def digits_for(error: float | None, most: int = 4) -> int:
    """How many decimals a number deserves whose uncertainty is `error`: two significant ones of the uncertainty."""
    if not error or not math.isfinite(error):
        return most
    return int(min(most, max(0, 1 - math.floor(math.log10(error)))))


def false_discoveries(p_values: np.ndarray, rate: float = ALPHA) -> np.ndarray:
    """Which of p values [n] are discoveries at a false discovery rate, bool [n] (Benjamini and Hochberg 1995)."""
    if not len(p_values):
        return np.zeros(0, dtype=bool)
    return np.asarray(stats.false_discovery_control(p_values) <= rate)
