"""Whether the removed units are inert, by random subsets of them, beside random subsets of the kept ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mechint.analysis.describing import Record
from mechint.analysis.necessity import ERRORS
from mechint.analysis.trials import Trials
from mechint.masking.units import round_half_up
from mechint.metrics.spread import Spread

# Changes below this fraction of what as many kept units are worth do not count.
NEGLIGIBLE = 0.01


def subset_counts(keep: Tensor, sizes: Sequence[float]) -> list[int]:
    """How many units a subset of each size has, at least one; sizes are fractions of the smaller side of keep [U]."""
    smaller = min(int(keep.sum()), int((~keep).sum()))
    return sorted({max(1, round_half_up(size * smaller)) for size in sizes}) if smaller else []


def measure_inertness(
    trials: Trials, counts: Sequence[int], draws: int, generator: torch.Generator
) -> Record:
    """Changes of the KL in nats per token when random units are added back, and when as many kept ones are removed.

    lowers, raises: shares of the draws of which the change is below or above zero.
    """
    sides = {
        "added": (~trials.keep).nonzero().flatten().cpu(),
        "removed": trials.keep.nonzero().flatten().cpu(),
    }
    flips = [
        members[torch.randperm(len(members), generator=generator)[:count]]
        for count in counts
        for members in sides.values()
        for _ in range(draws)
    ]
    kl = trials.kl([sides["added"][:0], *flips]).mean(1)
    changes = (kl[1:] - kl[0]).view(len(counts), len(sides), draws)
    entries = [
        {"units": count} | {side: _distribution(changes[i, j].tolist()) for j, side in enumerate(sides)}
        for i, count in enumerate(counts)
    ]
    return {
        "draws": draws,
        "tokens": trials.tokens,
        "masked_kl": float(kl[0]),
        "dropped": len(sides["added"]),
        "kept": len(sides["removed"]),
        "sizes": entries,
        "verdict": _verdict(entries),
    }


def _distribution(changes: list[float]) -> Record:
    spread = Spread(tuple(changes))
    return {
        "mean": spread.mean,
        "sd": spread.sd,
        "min": spread.low,
        "max": spread.high,
        "lowers": sum(change < 0 for change in changes) / len(changes),
        "raises": sum(change > 0 for change in changes) / len(changes),
        "values": changes,
    }


def _verdict(entries: Sequence[Record]) -> str:
    """What adding back does to the KL: "lowers" it, "raises" it, "mixed" by size, or "none" to speak of.

    A change counts where it is beyond noise and at least NEGLIGIBLE of what removing as many kept units does.
    """
    signs = set()
    for entry in entries:
        added = entry["added"]
        noise = ERRORS * (added["sd"] or 0.0) / math.sqrt(len(added["values"]))
        if abs(added["mean"]) > max(noise, NEGLIGIBLE * abs(entry["removed"]["mean"])):
            signs.add("lowers" if added["mean"] < 0 else "raises")
    return "none" if not signs else signs.pop() if len(signs) == 1 else "mixed"
