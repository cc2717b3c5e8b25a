"""Whether each kept unit is needed: the KL without it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mechint.analysis.describing import Record
from mechint.analysis.trials import Trials
from mechint.runtime.files import plain

# A change is told from noise where it is so many standard errors from zero.
ERRORS = 2.0


@dataclass(frozen=True)
class Necessity:
    """Rise of the KL in nats per token when one kept unit alone is removed.

    units: LongTensor [n], the units that were tried. rise: mean over evaluation rows, [n]. error: its standard error
    over the rows, [n]; NaN for a single row.
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

    def as_record(self, tokens: int, kept: int, seconds: float) -> Record:
        """What result.json says of it."""
        needed, harmful = int(self.needed.sum()), int(self.harmful.sum())
        content = {
            "kept": kept,
            "tested": len(self.units),
            "tokens": tokens,
            "seconds": seconds,
            "needed": needed,
            "unclear": len(self.units) - needed - harmful,
            "harmful": harmful,
            "rise": {
                "mean": float(self.rise.mean()),
                "median": float(self.rise.median()),
                "min": float(self.rise.min()),
                "max": float(self.rise.max()),
            },
        }
        return dict(plain(content))

    def on_units(self, count: int) -> tuple[Tensor, Tensor]:
        """Rise and standard error [U], NaN where a unit was not tried."""
        rise, error = torch.full((2, count), math.nan).unbind()
        rise[self.units], error[self.units] = self.rise.float(), self.error.float()
        return rise, error


def measure_necessity(trials: Trials, most: int, generator: torch.Generator) -> Necessity:
    """Remove each kept unit alone; where more than `most` are kept, a random sample of so many."""
    kept = trials.keep.nonzero().flatten().cpu()
    if len(kept) > most:
        chosen = torch.randperm(len(kept), generator=generator)[:most]
        kept = kept[chosen.sort().values]
    kl = trials.kl([kept[:0], *kept.split(1)])  # [1 + n, M]
    rise = kl[1:] - kl[0]
    error = rise.std(1) / math.sqrt(rise.shape[1]) if rise.shape[1] > 1 else rise[:, 0] * math.nan
    return Necessity(kept, rise.mean(1), error)
