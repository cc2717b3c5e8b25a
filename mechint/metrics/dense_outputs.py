"""The dense model's outputs on a data set, computed once where they fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.masking.masked_model import MaskedModel

# The cache lies on a CUDA device while it takes at most this part of the memory that is free there, else in pinned host
# memory, from where it is copied while the device computes.
DEVICE_SHARE = 0.25


class DenseOutputs:
    """Final hidden states [B, T, D] of the dense model for the sequences of a data set.

    They are kept while all rows together stay below `capacity` bytes; otherwise they are computed at every call.
    `kept_bytes` is the size of what is kept. The last bits of a row's outputs may depend on which rows were computed
    with it, so a run that goes on from a saved state computes the same rows together again.
    """

    def __init__(self, masked: MaskedModel, batch: Batch, capacity: int) -> None:
        self._masked, self._batch, self._capacity = masked, batch, capacity
        self._kept: Tensor | None = None  # [rows, T, D]
        self._known = torch.zeros(len(batch), dtype=torch.bool)
        self._started = False
        self._together: list[Tensor] = []  # rows that were computed at once
        self._group = torch.full((len(batch),), -1)  # which of these a row belongs to; -1 is none yet

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

    @torch.no_grad()
    def bytes_on_device(self) -> int:
        """What the cache takes, once all rows are in it, of the memory that the model computes in."""
        one = self._compute(torch.zeros(1, dtype=torch.long))
        size = len(self._batch) * one.numel() * one.element_size()
        return size if self._place(size, one.device) == one.device else 0

    def _room(self, like: Tensor) -> Tensor | None:
        """An empty cache for hidden states like these [B, T, D], where it may be and where it fits."""
        shape = (len(self._batch), *like.shape[1:])
        place = self._place(like[0].numel() * like.element_size() * len(self._batch), like.device)
        return None if place is None else torch.empty(shape, dtype=like.dtype, device=place)

    def _place(self, size: int, device: torch.device) -> torch.device | None:
        """Where so many bytes are kept; None: nowhere."""
        if size > self._capacity:
            return None
        if device.type != "cuda" or size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            return device
        return torch.device("cpu")

    def _compute(self, chosen: Tensor) -> Tensor:
        return self._masked.hidden(self._batch[chosen].to(self._masked.device))
