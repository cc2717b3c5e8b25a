"""Tests with a known rate of false claims: whether two sides differ, whether a mean is 0, or as good as 0."""

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


@dataclass(frozen=True)
class Estimate:
    """A mean whose error follows Student's t.

    error: its standard error. freedom: degrees of freedom. Both are NaN where one value alone tells of no error.
    """

    mean: float
    error: float
    freedom: float

    @property
    def known(self) -> bool:
        """Whether there is an error, without which nothing can be tested."""
        return math.isfinite(self.error)

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float] | None:
        """The confidence interval of this level; None where the error is not known."""
        if not self.known:
            return None
        width = self.error * _t_quantile((1 + level) / 2, self.freedom) if self.error else 0.0
        return self.mean - width, self.mean + width

    def p_value(self) -> float | None:
        """Two-sided p of the mean being 0."""
        return None if not self.known else min(1.0, 2 * self._tail(abs(self.mean)))

    def equivalence(self, bound: float) -> float | None:
        """p of the mean lying outside of -bound to bound, by two one-sided tests (Schuirmann 1987).

        At a p of at most ALPHA the interval of level 1 - 2 ALPHA lies inside.
        """
        return None if not self.known else max(self._tail(self.mean + bound), self._tail(bound - self.mean))

    def _tail(self, distance: float) -> float:
        """Chance of a distance so large above 0."""
        if not self.error:
            return 1.0 if distance <= 0 else 0.0
        return float(stats.t.sf(distance / self.error, self.freedom))


def crossed_mean(values: np.ndarray) -> Estimate:
    """The mean of values [draws, M] of random draws on M sequences, where both are samples.

    Its variance is that of the draws plus that of the sequences, less what in the latter is noise between draws
    already (two-way random effects). Degrees of freedom after Satterthwaite (1946).
    """
    values = np.asarray(values, dtype=float)
    draws, sequences = values.shape
    mean = float(values.mean())
    if draws < 2 or sequences < 2:
        return Estimate(mean, math.nan, math.nan)
    of_draws, of_sequences = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = values - of_draws - of_sequences + mean
    noise = float(np.square(rest).sum()) / ((draws - 1) * (sequences - 1)) / draws
    parts = [
        (float(of_draws.var(ddof=1)) / draws, draws - 1),
        (max(0.0, float(of_sequences.var(ddof=1)) - noise) / sequences, sequences - 1),
    ]
    variance = math.fsum(part for part, _ in parts)
    if not variance:
        return Estimate(mean, 0.0, math.inf)
    freedom = variance**2 / math.fsum(part**2 / degrees for part, degrees in parts)
    return Estimate(mean, math.sqrt(variance), freedom)


def sample_mean(values: np.ndarray) -> Estimate:
    """The mean of values [M] that are a sample."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return Estimate(float(values.mean()), math.nan, math.nan)
    return Estimate(float(values.mean()), float(stats.sem(values)), len(values) - 1)


def sample_p_values(means: np.ndarray, errors: np.ndarray, count: int) -> np.ndarray:
    """Two-sided p, [n], of means of samples of `count` values being 0, by Student's t; NaN for single values.

    A mean whose values are all the same has p 0, or 1 where they are 0.
    """
    if count < 2:
        return np.full(len(means), math.nan)
    steady = errors == 0
    t = np.abs(means) / np.where(steady, 1, errors)
    return np.where(steady, (means == 0).astype(float), 2 * stats.t.sf(t, count - 1))


def _t_quantile(share: float, freedom: float) -> float:
    return float(stats.t.ppf(share, freedom))


def false_discovery_rates(p_values: np.ndarray) -> np.ndarray:
    """q values [n]: the false discovery rate at which each of p values [n] is a discovery (Benjamini, Hochberg 1995).

    NaN, which no test has, stays NaN and is not counted.
    """
    found = np.full(len(p_values), math.nan)
    known = np.isfinite(p_values)
    if known.any():
        found[known] = stats.false_discovery_control(p_values[known])
    return found
