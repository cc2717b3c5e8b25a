"""Streaming moments of a dense model's attention over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from mechint.masking.masked_model import LayerRecorder, MaskedModel
from mechint.masking.projections import OutputProjection, recording_heads


class RunningMeans:
    """Means over everything that was added, one per key, kept in double precision."""

    def __init__(self) -> None:
        self._sums: dict[Hashable, Tensor] = {}
        self._counts: dict[Hashable, int] = {}

    def add(self, key: Hashable, values: Tensor) -> None:
        """Add samples [samples, ...]."""
        sums = values.double().sum(0)
        self._sums[key] = self._sums[key] + sums if key in self._sums else sums
        self._counts[key] = self._counts.get(key, 0) + len(values)

    def __getitem__(self, key: Hashable) -> Tensor:
        """The mean [...] of what was added under a key."""
        return self._sums[key] / self._counts[key]


class _States(LayerRecorder):
    """Hands a layer's states on to a plain function."""

    def __init__(self, function: Callable[[int, Tensor, Tensor, Tensor], None]) -> None:
        self._function = function

    def __call__(self, position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        self._function(position, query.float(), key.float(), value.float())


@torch.no_grad()
def observe(
    masked: MaskedModel,
    rows: Tensor,
    batch_size: int,
    on_states: Callable[[int, Tensor, Tensor, Tensor], None],
    projections: Sequence[OutputProjection],
    on_heads: Callable[[int, Tensor], None],
) -> int:
    """Run the dense model once over rows [N, T + 1] and show every layer's states; return N * T, the tokens spent.

    on_states gets (position of the layer, query [B, H, T, C], key [B, G, T, C], value [B, G, T, C]), on_heads gets
    (position, input of the output projection [B, T, H, C]), all in float32. The language model's head is not run.
    """

    def heads(position: int, states: Tensor) -> None:
        on_heads(position, states.float())

    with masked.recording(_States(on_states)), recording_heads(projections, heads):
        for batch in rows.split(batch_size):
            masked.model.base_model(input_ids=batch[:, :-1].to(masked.device), use_cache=False)
    return rows[:, 1:].numel()
