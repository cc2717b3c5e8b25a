"""Wanda's and FLAP's scores of the output projection's inputs, with ThinK's for the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mechint.methods.scoring.think import Think


@dataclass(kw_only=True)
class _HeadOutputs(Think):
    """Watches the inputs x [B, T, H, C] of the output projection besides what ThinK watches."""

    def see_heads(self, position: int, heads: Tensor) -> None:
        """Means and mean squares of the heads' outputs."""
        groups = heads.unflatten(2, (self._layers[position].num_kv_heads, -1))  # [B, T, G, R, C]
        self._means.add((position, "x"), groups.mean(1))
        self._means.add((position, "x^2"), groups.square().mean(1))


@dataclass(kw_only=True)
class Wanda(_HeadOutputs):
    """Weight times activation (Sun et al. 2023), structured by columns as FLAP's WIFN.

    V channel c: sum over the group's query heads h of |x_hc|_2 |W_O[:, h, c]|_1, x the output projection's input and
    |x|_2 its root mean square. K: as `Think`, for the source has no score of keys.
    """

    meaning: ClassVar[str] = "weight times activation (V), energy of its term of the logits (K)"

    def value_scores(self, position: int) -> Tensor:
        """sum_h |x_h|_2 |W_O|_1."""
        weight = self.output_weight(position).abs().sum(0)  # [G, R, C]
        return (self._means[position, "x^2"].sqrt() * weight).sum(1)


@dataclass(kw_only=True)
class Flap(_HeadOutputs):
    """Fluctuation (FLAP's WIFV, An et al. 2023): how much the output projection's inputs vary, times its weights.

    V channel c: sum over the group's query heads h of Var(x_hc) |W_O[:, h, c]|^2. K: as `Think`, for the source has
    no score of keys. FLAP gives back the mean of what it removes, which is ablation=mean.
    """

    meaning: ClassVar[str] = "fluctuation times weight (V), energy of its term of the logits (K)"

    def value_scores(self, position: int) -> Tensor:
        """sum_h Var(x_h) |W_O|^2."""
        variance = self._means[position, "x^2"] - self._means[position, "x"].square()  # [G, R, C]
        return (variance * self.output_weight(position).square().sum(0)).sum(1)
