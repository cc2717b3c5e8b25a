"""Variations of one hard mask on evaluation data: is every kept unit needed, and are the removed ones inert?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechint.masking import Units
from mechint.masking.units import round_half_up
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.metric import KL
from mechint.metrics.spread import Spread
from mechint.results.result import InertnessInfo, KlChanges, NecessityInfo, Rise, SubsetTrial

# A change is told from noise where it is so many standard errors from zero.
ERRORS = 2.0

# Changes below this fraction of what as many kept units are worth do not count.
NEGLIGIBLE = 0.01


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
        """KL(dense || masked), double [flips, M], mean over the positions of every sequence, in nats.

        flips: for each variation the numbers of the units that it switches over.
        """
        return self.evaluator([self._gates(flipped) for flipped in flips], [KL])[:, 0]

    def _gates(self, flipped: Tensor) -> Tensor:
        keep = self.keep.cpu().clone()
        keep[flipped] = ~keep[flipped]
        return self.units.to_channels(keep.float())


@dataclass(frozen=True)
class Necessity:
    """Rise of the KL in nats per token when one kept unit alone is removed.

    units: LongTensor [n], the units that were tried. rise: mean over evaluation sequences, [n]. error: its standard
    error over the sequences, [n]; NaN for a single one.
    """

    units: Tensor
    rise: Tensor
    error: Tensor

    @property
    def needed(self) -> Tensor:
        """Units whose removal raises the KL, beyond noise, bool [n]."""
        return self.rise > self._noise

    @property
    def harmful(self) -> Tensor:
        """Units whose removal lowers the KL, beyond noise, bool [n]."""
        return self.rise < -self._noise

    @property
    def _noise(self) -> Tensor:
        return ERRORS * self.error.nan_to_num(0.0)

    def info(self, tokens: int, kept: int, seconds: float) -> NecessityInfo:
        """What result.json says of it."""
        needed, harmful = int(self.needed.sum()), int(self.harmful.sum())
        return NecessityInfo(
            kept=kept,
            tested=len(self.units),
            tokens=tokens,
            seconds=seconds,
            needed=needed,
            unclear=len(self.units) - needed - harmful,
            harmful=harmful,
            rise=Rise(
                mean=float(self.rise.mean()),
                median=float(self.rise.median()),
                min=float(self.rise.min()),
                max=float(self.rise.max()),
            ),
        )

    def on_units(self, count: int) -> tuple[Tensor, Tensor]:
        """Rise and standard error [U], NaN where a unit was not tried."""
        rise, error = torch.full((2, count), math.nan).unbind()
        rise[self.units], error[self.units] = self.rise.float(), self.error.float()
        return rise, error


def measure_necessity(trials: Trials, most: int, generator: torch.Generator) -> Necessity:
    """Remove each kept unit alone; where more than `most` are kept, a random sample of so many."""
    kept = trials.kept
    if len(kept) > most:
        chosen = torch.randperm(len(kept), generator=generator)[:most]
        kept = kept[chosen.sort().values]
    kl = trials.kl([kept[:0], *kept.split(1)])  # [1 + n, M]
    rise = kl[1:] - kl[0]
    error = rise.std(1) / math.sqrt(rise.shape[1]) if rise.shape[1] > 1 else rise[:, 0] * math.nan
    return Necessity(kept, rise.mean(1), error)


def subset_counts(keep: Tensor, sizes: Sequence[float]) -> list[int]:
    """How many units a subset of each size has, at least one; sizes are fractions of the smaller side of keep [U]."""
    smaller = min(int(keep.sum()), int((~keep).sum()))
    return sorted({max(1, round_half_up(size * smaller)) for size in sizes}) if smaller else []


def measure_inertness(
    trials: Trials, counts: Sequence[int], draws: int, generator: torch.Generator
) -> InertnessInfo:
    """Changes of the KL when random removed units are added back, and when as many random kept ones are removed."""
    sides = (trials.removed, trials.kept)
    flips = [
        members[torch.randperm(len(members), generator=generator)[:count]]
        for count in counts
        for members in sides
        for _ in range(draws)
    ]
    kl = trials.kl([trials.removed[:0], *flips]).mean(1)
    changes = (kl[1:] - kl[0]).view(len(counts), len(sides), draws)
    spreads = [[Spread(tuple(side)) for side in size] for size in changes.tolist()]
    sizes = [
        SubsetTrial(units=count, added=_kl_changes(added), removed=_kl_changes(removed))
        for count, (added, removed) in zip(counts, spreads, strict=True)
    ]
    return InertnessInfo(
        draws=draws,
        tokens=trials.tokens,
        masked_kl=float(kl[0]),
        dropped=len(trials.removed),
        kept=len(trials.kept),
        sizes=sizes,
        verdict=_verdict(spreads),
    )


def _kl_changes(changes: Spread) -> KlChanges:
    return KlChanges(
        mean=changes.mean,
        sd=changes.sd,
        min=changes.low,
        max=changes.high,
        lowers=sum(change < 0 for change in changes.values) / changes.n,
        raises=sum(change > 0 for change in changes.values) / changes.n,
        values=list(changes.values),
    )


def _verdict(sizes: Sequence[Sequence[Spread]]) -> Literal["none", "lowers", "raises", "mixed"]:
    """What adding back does to the KL: "lowers" it, "raises" it, "mixed" by size, or "none" to speak of.

    sizes: for each the changes by adding and by removing. A change counts where it is beyond noise and at least
    NEGLIGIBLE of what removing as many kept units does.
    """
    lowers = raises = False
    for added, removed in sizes:
        noise = ERRORS * (added.sd or 0.0) / math.sqrt(added.n)
        if abs(added.mean) > max(noise, NEGLIGIBLE * abs(removed.mean)):
            lowers, raises = lowers or added.mean < 0, raises or added.mean >= 0
    if lowers and raises:
        return "mixed"
    return "lowers" if lowers else "raises" if raises else "none"
