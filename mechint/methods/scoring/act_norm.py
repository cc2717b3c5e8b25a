"""Channels with large activations matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mechint.methods.scoring.activation_scorer import ActivationScorer


@dataclass(kw_only=True)
class ActivationNorm(ActivationScorer):
    """Root mean square of a channel over the calibration data: K (E k^2)^1/2, V (E v^2)^1/2.

    The K norm of Devoto et al. 2024 (KnormPress of kvpress), taken over tokens instead of channels.
    """

    meaning: ClassVar[str] = "root mean square of keys or values"
    reads_outputs: ClassVar[bool] = False

    def see_states(self, position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Mean squares of keys and values."""
        self._means.add((position, "k^2"), key.square().mean(2))
        self._means.add((position, "v^2"), value.square().mean(2))

    def key_scores(self, position: int) -> Tensor:
        """(E k^2)^1/2."""
        return self._means[position, "k^2"].sqrt()

    def value_scores(self, position: int) -> Tensor:
        """(E v^2)^1/2."""
        return self._means[position, "v^2"].sqrt()
