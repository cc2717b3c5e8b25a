"""The dense model's outputs on the calibration data, computed once where they fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mechint.masking.masked_model import MaskedModel

# The cache lies on a CUDA device while it takes at most this part of the memory that is free there, else in pinned host
# memory, from where it is copied while the device computes.
DEVICE_SHARE = 0.25


class DenseOutputs:
    """Final hidden states [B, T, D] of the dense model for rows of the calibration data.

    They are kept while all rows together stay below `capacity` bytes; otherwise they are computed at every call.
    `kept_bytes` is the size of what is kept. The last bits of a row's outputs may depend on which rows were computed
    with it, so a run that goes on from a saved state computes the same rows together again.
    """

    def __init__(self, masked: MaskedModel, rows: Tensor, capacity: int) -> None:
        self._masked, self._rows, self._capacity = masked, rows, capacity
        self._kept: Tensor | None = None  # [rows, T, D]
        self._known = torch.zeros(len(rows), dtype=torch.bool)
        self._started = False
        self._together: list[Tensor] = []  # rows that were computed at once
        self._group = torch.full((len(rows),), -1)  # which of these a row belongs to; -1 is none yet

    @property
    def kept_bytes(self) -> int:
        """Bytes of the cache."""
        return 0 if self._kept is None else self._kept.numel() * self._kept.element_size()

    @torch.no_grad()
    def __call__(self, chosen: Tensor) -> Tensor:
        """Final hidden states [B, T, D] of the rows with numbers `chosen` [B]."""
        missing = chosen[~self._known[chosen]]
        group = self._group[missing]
        for number in group[group >= 0].unique().tolist():  # computed in an earlier attempt at the run
            self._add(self._together[number])
        if len(missing := missing[group < 0]):
            computed = self._add(missing)
            if self._kept is None:
                return computed
            self._group[missing] = len(self._together)
            self._together.append(missing)
        assert self._kept is not None
        found = self._kept[chosen.to(self._kept.device)]
        if found.device == self._masked.device:
            return found
        return found.pin_memory().to(self._masked.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Which rows were computed together; not their outputs."""
        return {"together": self._together}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compute the same rows together again when they are needed."""
        self._together = state_dict["together"]
        for number, rows in enumerate(self._together):
            self._group[rows] = number

    def _add(self, rows: Tensor) -> Tensor:
        """Compute rows [B], and keep them where there is room."""
        computed = self._compute(rows)
        if not self._started:
            self._started = True
            self._kept = self._room(computed)
        if self._kept is not None:
            self._kept[rows.to(self._kept.device)] = computed.to(self._kept.device)
            self._known[rows] = True
        return computed

    def _room(self, like: Tensor) -> Tensor | None:
        """An empty cache for hidden states like these [B, T, D], where it may be and where it fits."""
        shape = (len(self._rows), *like.shape[1:])
        size = like[0].numel() * like.element_size() * len(self._rows)
        if size > self._capacity:
            return None
        if like.device.type != "cuda":
            return like.new_empty(shape)
        if size <= DEVICE_SHARE * torch.cuda.mem_get_info(like.device)[0]:
            return like.new_empty(shape)
        return torch.empty(shape, dtype=like.dtype)

    def _compute(self, chosen: Tensor) -> Tensor:
        return self._masked.hidden(self._rows[chosen.to(self._rows.device), :-1].to(self._masked.device))
