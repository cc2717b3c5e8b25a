"""Trying variations of a mask on evaluation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechint.masking import MaskedModel, Units
from mechint.metrics.objectives import kl_per_position


@dataclass(frozen=True)
class Trials:
    """Measures variations of one hard mask keep, bool [U], on evaluation rows [M, T + 1].

    batch_size: how many variations go through the model at once.
    """

    masked: MaskedModel
    units: Units
    keep: Tensor
    rows: Tensor
    batch_size: int

    @property
    def tokens(self) -> int:
        """Predicted tokens that each variation is measured on."""
        return self.rows[:, 1:].numel()

    @torch.inference_mode()
    def kl(self, flips: Sequence[Tensor]) -> Tensor:
        """KL(dense || masked), double [flips, M], mean over the positions of every row, in nats.

        flips: for each variation the numbers of the units that it switches over.
        """
        result = torch.zeros(len(flips), len(self.rows), dtype=torch.double)
        device = self.masked.device
        for number, row in enumerate(self.rows):
            tokens = row[None, :-1].to(device)
            dense = self.masked.hidden(tokens)  # [1, T, D]
            for start in range(0, len(flips), self.batch_size):
                gates = self._gates(flips[start : start + self.batch_size]).to(device)  # [B, N]
                hidden = self.masked.hidden(tokens.expand(len(gates), -1), gates)
                kl = kl_per_position(dense, hidden, self.masked.head).mean(1)  # [B]
                result[start : start + len(gates), number] = kl.cpu()
        return result

    def _gates(self, flips: Sequence[Tensor]) -> Tensor:
        keeps = self.keep.cpu().repeat(len(flips), 1)
        for keep, flipped in zip(keeps, flips, strict=True):
            keep[flipped] = ~keep[flipped]
        return self.units.to_channels(keeps.float())
