"""Which tests a run of several seeds makes on its consensus mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mechint.errors import UserError


@dataclass(kw_only=True)
class Stability:
    """What is tested beside the agreement of the seeds.

    necessity: whether every kept unit is removed alone. subset_draws: random subsets of units that are added back, and
    removed, per size; 0 draws none. subset_sizes: their sizes, as fractions of the kept or the removed units, whichever
    are fewer. null_control: whether the method also runs on the model with permuted weights. tokens: evaluation tokens
    on which each trial is measured, at most. budget: trials see at most this fraction of the tokens that all seeds
    together saw, with fewer tokens each or, where that is not enough, fewer units.
    """

    necessity: bool = True
    subset_draws: int = 10
    subset_sizes: Sequence[float] = (0.05, 0.2, 0.5)
    null_control: bool = True
    tokens: int = 8192
    budget: float = 0.5

    def __post_init__(self) -> None:
        if self.subset_draws < 0 or self.tokens < 1:
            raise UserError("stability.subset_draws must be at least 0 and stability.tokens at least 1")
        if not self.subset_sizes or not all(0 < size <= 1 for size in self.subset_sizes):
            raise UserError(
                f"stability.subset_sizes={list(self.subset_sizes)} must be fractions above 0, up to 1, e.g. [0.1, 0.5]"
            )
        self.subset_sizes = tuple(self.subset_sizes)
        if not self.budget > 0:
            raise UserError(f"stability.budget={self.budget} must be above 0; 1 is as much as the seeds saw")
