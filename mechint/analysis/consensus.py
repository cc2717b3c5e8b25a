"""From the masks of several seeds to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechint.masking import MaskSet, Pools, Units
from mechint.masking.masks import flat_importance, flat_keep


@dataclass(frozen=True)
class Selections:
    """What S seeds chose. keep: bool [S, U]. importance: float [S, U]."""

    keep: Tensor
    importance: Tensor

    @classmethod
    def of(cls, units: Units, masks: Sequence[MaskSet]) -> Selections:
        """The units that saved masks keep."""
        keep = [units.of_channels(flat_keep(units.space, mask_set)) for mask_set in masks]
        importance = [units.of_channels(flat_importance(units.space, mask_set)) for mask_set in masks]
        return cls(torch.stack(keep), torch.stack(importance))

    @property
    def frequency(self) -> Tensor:
        """The fraction of seeds that keep each unit, [U]."""
        return self.keep.float().mean(0)

    def scores(self, pools: Pools) -> Tensor:
        """Scores [U] by which a pool keeps the units most often selected, ties by mean importance rank."""
        ranks = torch.stack([pools.ranks(importance) for importance in self.importance])
        return self.keep.double().sum(0) - ranks.double().mean(0) / self.keep.shape[1]
