"""The dense model's outputs on the calibration data, computed once where they fit."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.masking.masked_model import MaskedModel


class DenseOutputs:
    """Logits [B, T, V] of the dense model for rows of the calibration data.

    They are kept while all rows together stay below `capacity` bytes; otherwise they are computed at every call.
    """

    def __init__(self, masked: MaskedModel, rows: Tensor, capacity: int) -> None:
        self._masked, self._rows = masked, rows
        self._kept: dict[int, Tensor] = {}
        self._capacity = capacity
        self._keep: bool | None = None

    @torch.no_grad()
    def __call__(self, chosen: Tensor) -> Tensor:
        """Dense logits [B, T, V] of the rows with numbers `chosen` [B]."""
        missing = [row for row in chosen.tolist() if row not in self._kept]
        if not missing:
            return torch.stack([self._kept[row] for row in chosen.tolist()])
        if self._keep is False:
            return self._compute(chosen)
        computed = self._compute(torch.tensor(missing))
        if self._keep is None:
            row_bytes = computed[0].numel() * computed.element_size()
            self._keep = row_bytes * len(self._rows) <= self._capacity
            if not self._keep:
                return computed
        self._kept.update(zip(missing, computed.unbind(), strict=True))
        return torch.stack([self._kept[row] for row in chosen.tolist()])

    def _compute(self, chosen: Tensor) -> Tensor:
        return self._masked.logits(self._rows[chosen, :-1].to(self._masked.device))
