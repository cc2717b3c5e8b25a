"""Variations of one hard mask on evaluation data: is every kept unit needed, and are the removed ones inert?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from mechint.masking import Units
from mechint.masking.units import round_half_up
from mechint.metrics.evaluation import Evaluator, family_means, resampled, standard_error
from mechint.metrics.metric import KL
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import (
    ALPHA,
    Estimate,
    adjusted,
    crossed_mean,
    false_discovery_rates,
    sample_mean,
    sample_p_values,
)
from mechint.results.result import InertnessInfo, KlChanges, NecessityInfo, Rise, SubsetTrial

# Units that are wrongly called needed or harmful, as a share of all that are called so.
RATE = 0.05

# Removed units are inert where adding them back changes the KL by less than this share of what removing as many kept
# units costs.
NEGLIGIBLE = 0.01

Verdict = Literal["equivalent", "unclear", "lowers", "raises", "mixed"]


@dataclass(frozen=True)
class Trials:
    """Measures variations of one hard mask keep, bool [U], with an evaluator of its evaluation data."""

    evaluator: Evaluator
    units: Units
    keep: Tensor

    @property
    def tokens(self) -> int:
        """Predicted tokens that each variation is measured on."""
        return self.evaluator.batch.size

    @property
    def kept(self) -> Tensor:
        """Numbers of the kept units, LongTensor."""
        return self.keep.nonzero().flatten().cpu()

    @property
    def removed(self) -> Tensor:
        """Numbers of the removed units, LongTensor."""
        return (~self.keep).nonzero().flatten().cpu()

    def kl(self, flips: Sequence[Tensor]) -> Tensor:
        """KL(dense || masked), double [flips, M], mean over the positions of every sequence, in nats; on a task over
        every family of prompts, which are versions of each other and no samples of their own.

        flips: for each variation the numbers of the units that it switches over.
        """
        kl = self.evaluator([self._gates(flipped) for flipped in flips], [KL])[:, 0]
        return family_means(kl, self.evaluator.batch.families)

    @property
    def positions(self) -> Tensor:
        """How many positions count in each of the M samples of `kl`, double [M]; of families as many."""
        batch = self.evaluator.batch
        return family_means(batch.positions, batch.families)

    def _gates(self, flipped: Tensor) -> Tensor:
        keep = self.keep.cpu().clone()
        keep[flipped] = ~keep[flipped]
        return self.units.to_channels(keep.float())


@dataclass(frozen=True)
class Necessity:
    """Rise of the KL in nats per token when one kept unit alone is removed.

    units: LongTensor [n], the units that were tried. rises: double [n, M], of every evaluation sequence.
    """

    units: Tensor
    rises: Tensor

    @property
    def sequences(self) -> int:
        """M, how many evaluation sequences they were tried on."""
        return self.rises.shape[1]

    @property
    def rise(self) -> Tensor:
        """Mean over the sequences, [n]."""
        return self.rises.mean(1)

    @property
    def error(self) -> Tensor:
        """Its standard error, [n]; NaN for a single sequence."""
        if self.sequences < 2:
            return torch.full_like(self.rise, math.nan)
        return self.rises.std(1) / math.sqrt(self.sequences)

    @property
    def p(self) -> Tensor:
        """p of each mean rise being 0, two-sided, by Student's t, [n]."""
        return torch.from_numpy(sample_p_values(self.rise.numpy(), self.error.numpy(), self.sequences))

    @property
    def q(self) -> Tensor:
        """False discovery rate over all units at which a rise is told from 0, [n]."""
        return torch.from_numpy(false_discovery_rates(self.p.numpy()))

    @property
    def needed(self) -> Tensor:
        """Units whose removal raises the KL, bool [n], at the false discovery rate RATE."""
        return (self.q <= RATE) & (self.rise > 0)

    @property
    def harmful(self) -> Tensor:
        """Units whose removal lowers the KL, bool [n], likewise."""
        return (self.q <= RATE) & (self.rise < 0)

    def info(self, tokens: int, kept: int, seconds: float, positions: Tensor | None = None) -> NecessityInfo:
        """What result.json says of it. positions: how many of each sequence count, [M]; None: as many of each."""
        needed, harmful = int(self.needed.sum()), int(self.harmful.sum())
        counted = torch.ones(self.sequences, dtype=torch.double) if positions is None else positions
        known = self.q[self.q.isfinite()]
        rise = self.rise
        return NecessityInfo(
            kept=kept,
            tested=len(self.units),
            tokens=tokens,
            sequences=self.sequences,
            seconds=seconds,
            rate=RATE,
            t_quantile=float(stats.t.ppf(1 - ALPHA / 2, self.sequences - 1)) if self.sequences > 1 else None,
            smallest_q=float(known.min()) if len(known) else None,
            largest_q=float(known.max()) if len(known) else None,
            needed=needed,
            unclear=len(self.units) - needed - harmful,
            harmful=harmful,
            rise=Rise(
                mean=float(rise.mean()),
                mean_se=standard_error(resampled(self.rises.mean(0), counted)),
                median=float(rise.median()),
                min=float(rise.min()),
                max=float(rise.max()),
            ),
        )

    def on_units(self, count: int) -> dict[str, Tensor]:
        """necessity, necessity_error, necessity_p and necessity_q, each [U], NaN where a unit was not tried."""
        values = {
            "necessity": self.rise,
            "necessity_error": self.error,
            "necessity_p": self.p,
            "necessity_q": self.q,
        }
        found = {name: torch.full((count,), math.nan) for name in values}
        for name, value in values.items():
            found[name][self.units] = value.float()
        return found


def measure_necessity(trials: Trials, most: int, generator: torch.Generator) -> Necessity:
    """Remove each kept unit alone; where more than `most` are kept, a random sample of so many."""
    kept = trials.kept
    if len(kept) > most:
        chosen = torch.randperm(len(kept), generator=generator)[:most]
        kept = kept[chosen.sort().values]
    kl = trials.kl([kept[:0], *kept.split(1)])  # [1 + n, M]
    return Necessity(kept, kl[1:] - kl[0])


def subset_counts(keep: Tensor, sizes: Sequence[float]) -> list[int]:
    """How many units a subset of each size has, at least one; sizes are fractions of the smaller side of keep [U]."""
    smaller = min(int(keep.sum()), int((~keep).sum()))
    return sorted({max(1, round_half_up(size * smaller)) for size in sizes}) if smaller else []


def measure_inertness(
    trials: Trials, counts: Sequence[int], draws: int, generator: torch.Generator
) -> InertnessInfo:
    """Changes of the KL when random removed units are added back, and when as many random kept ones are removed.

    Whether adding back changes nothing is an equivalence test for each count: two one-sided tests of the mean change
    against a bound, NEGLIGIBLE of what removing as many kept units costs.
    """
    sides = (trials.removed, trials.kept)
    flips = [
        members[torch.randperm(len(members), generator=generator)[:count]]
        for count in counts
        for members in sides
        for _ in range(draws)
    ]
    kl = trials.kl([trials.removed[:0], *flips])  # [1 + trials, M]
    changes = (kl[1:] - kl[0]).view(len(counts), len(sides), draws, -1).numpy()
    sizes = [
        _subset_trial(count, size, [count == len(members) for members in sides])
        for count, size in zip(counts, changes, strict=True)
    ]
    verdict = _verdict(sizes)
    return InertnessInfo(
        draws=draws,
        tokens=trials.tokens,
        sequences=len(trials.positions),
        masked_kl=float(kl[0].mean()),
        masked_kl_se=standard_error(resampled(kl[0], trials.positions)),
        dropped=len(trials.removed),
        kept=len(trials.kept),
        share=NEGLIGIBLE,
        equivalent=None if any(size.equivalent is None for size in sizes) else verdict == "equivalent",
        sizes=sizes,
        verdict=verdict,
    )


def _subset_trial(count: int, changes: np.ndarray, whole: Sequence[bool]) -> SubsetTrial:
    """One size, from changes [2, draws, M] by adding and by removing; whole: whether the subset is the whole side."""
    added, removed = (
        sample_mean(side[0]) if all_of_it else crossed_mean(side)
        for side, all_of_it in zip(changes, whole, strict=True)
    )
    trial = SubsetTrial(
        units=count, added=_kl_changes(changes[0], added), removed=_kl_changes(changes[1], removed)
    )
    interval = added.interval(1 - 2 * ALPHA)
    if removed.mean > 0:
        trial.bound = NEGLIGIBLE * removed.mean
    if interval is not None and trial.bound is not None:
        trial.p = added.equivalence(trial.bound)
        trial.equivalent = trial.p is not None and trial.p <= ALPHA
    trial.interval = None if interval is None else list(interval)
    return trial


def _kl_changes(changes: np.ndarray, mean: Estimate) -> KlChanges:
    """Of changes [draws, M]."""
    spread = Spread(tuple(changes.mean(1).tolist()))
    return KlChanges(
        mean=mean.mean,
        mean_se=mean.error if mean.known else None,
        p=mean.p_value(),
        sd=spread.sd,
        min=spread.low,
        max=spread.high,
        lowers=sum(change < 0 for change in spread.values) / spread.n,
        raises=sum(change > 0 for change in spread.values) / spread.n,
        values=list(spread.values),
    )


def _verdict(sizes: Sequence[SubsetTrial]) -> Verdict:
    """What adding units back does to the KL.

    "equivalent": nothing beyond the bound, at every size. Else what it does at the sizes where a change is told from
    noise (Holm over the sizes) and is not shown to lie within the bound; "unclear" where there is none.
    """
    if all(size.equivalent for size in sizes):
        return "equivalent"
    told = [
        size.added.mean or 0.0
        for size, p in zip(sizes, adjusted(size.added.p for size in sizes), strict=True)
        if p is not None and p <= ALPHA and not size.equivalent
    ]
    lowers, raises = any(change < 0 for change in told), any(change > 0 for change in told)
    if lowers and raises:
        return "mixed"
    return "lowers" if lowers else "raises" if raises else "unclear"
