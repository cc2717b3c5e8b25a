"""ThinK's query-driven channel scores, plain and mean-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mechint.errors import UserError
from mechint.methods.scoring.activation_scorer import ActivationScorer


@dataclass(kw_only=True)
class Think(ActivationScorer):
    """Energy of a channel's own term of the attention logits (K) and of the layer's output (V).

    K channel c of KV head g: mean over the group's query heads of E_t[q_c^2], times E_t[k_c^2], per sequence,
    averaged over the calibration data; ThinK (Xu et al. 2024) does it for each prompt anew. It is the squared error
    of the logits when c alone is removed. V channel c: E[v_c^2] sum_h |W_O[:, h, c]|^2, h over the group's query
    heads.
    window: only the last so many queries of every sequence count, 32 in ThinK's code; None: all.

    Raises UserError for a window below 1.
    """

    meaning: ClassVar[str] = "energy of its term of the logits (K) or of the output (V)"

    window: int | None = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.window < 1:
            raise UserError(f"mask.window={self.window} must be at least 1, or null for all queries")

    def see_states(self, position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Products of mean squares of queries and keys, and what the values' score needs."""
        recent = query if self.window is None else query[:, :, -self.window :]
        energy = recent.square().mean(2).unflatten(1, (key.shape[1], -1)).mean(2)  # [B, G, C]
        self._means.add((position, "k"), energy * self.key_energy(key))
        self._means.add((position, "v"), value.mean(2))
        self._means.add((position, "v^2"), value.square().mean(2))

    def key_energy(self, key: Tensor) -> Tensor:
        """E_t[k^2] per sequence, [B, G, C], of keys [B, G, T, C]."""
        return key.square().mean(2)

    def value_energy(self, position: int) -> Tensor:
        """E[v^2], [G, C]."""
        return self._means[position, "v^2"]

    def key_scores(self, position: int) -> Tensor:
        """E q^2 E k^2."""
        return self._means[position, "k"]

    def value_scores(self, position: int) -> Tensor:
        """E v^2 sum_h |W_O|^2."""
        weight = self.output_weight(position).square().sum((0, 2))  # [G, C]
        return self.value_energy(position) * weight


@dataclass(kw_only=True)
class ThinkCentered(Think):
    """ThinK's scores without the energy of means, which attention cannot see or a bias can replace.

    K channel c: mean_h E_t[q_c^2] Var_t(k_c), the variance within a sequence, for a constant added to all keys leaves
    the softmax as it is (except with softcap or sinks). V channel c: Var(v_c) sum_h |W_O[:, h, c]|^2, the variance
    over the calibration data, for the mean folds into the output projection's bias, as ablation=mean has it.
    """

    meaning: ClassVar[str] = "variance of its term of the logits (K) or of the output (V)"

    def key_energy(self, key: Tensor) -> Tensor:
        """Var_t(k) per sequence, [B, G, C]."""
        return key.var(2, correction=0)

    def value_energy(self, position: int) -> Tensor:
        """Var(v), [G, C]."""
        return self._means[position, "v^2"] - self._means[position, "v"].square()
