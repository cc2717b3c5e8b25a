"""Numbers of the circuit literature, from a metric of every prompt under masks of growing size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Shares of the units that circuits are measured at (Mueller et al. 2025, Mechanistic Interpretability Benchmark).
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def kept_at(share: float, total: int) -> int:
    """How many of `total` units a circuit of this share keeps: rounded down, as the benchmark does."""
    return int(share * total + 1e-9)


def faithfulness_of(dense: Tensor, empty: Tensor, circuit: Tensor) -> Tensor:
    """(circuit - empty) / (dense - empty), from means over prompts [...]: a ratio of means, not a mean of ratios."""
    return (circuit - empty) / (dense - empty)


def area(shares: Sequence[float], heights: Tensor, log: bool = False) -> Tensor:
    """Trapezoids under heights [..., K] over K ascending shares.

    log: over their natural logarithms, and divided by the length, so that it is a mean height.
    """
    places = [math.log(share) for share in shares] if log else list(shares)
    widths = torch.tensor(places, dtype=torch.double).diff()
    middles = (heights[..., 1:].double() + heights[..., :-1].double()) / 2
    found = (middles * widths).sum(-1)
    return found / (places[-1] - places[0]) if log else found


def cpr(shares: Sequence[float], faithfulness: Tensor, log: bool = False) -> Tensor:
    """Circuit performance ratio, [...]: the area under faithfulness [..., K]; it may be above 1."""
    return area(shares, faithfulness, log)


def cmd(shares: Sequence[float], faithfulness: Tensor, log: bool = False) -> Tensor:
    """Circuit-model distance, [...]: the area under |1 - faithfulness| [..., K]; 0 is best."""
    return area(shares, (1 - faithfulness.double()).abs(), log)


def interval_of(draws: Tensor) -> list[float] | None:
    """The middle 95 % of bootstrap draws [draws]; None where some of them are no number."""
    if not bool(draws.isfinite().all()):
        return None
    ends = torch.quantile(draws.double(), torch.tensor([0.025, 0.975], dtype=torch.double))
    return [float(end) for end in ends]


def differ(dense: Tensor, empty: Tensor) -> bool:
    """Whether the dense model's mean lies above the empty one's in 97.5 % of bootstrap draws [draws].

    Otherwise faithfulness has noise in its denominator, and says nothing.
    """
    interval = interval_of(dense - empty)
    return interval is not None and interval[0] > 0
