"""Streaming moments of a dense model's attention over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.masking.weights import OutputProjection, recording_heads
from mechint.metrics.evaluation import Evaluator


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


def without_padding(batch: Batch, at_once: int) -> Iterator[Tensor]:
    """The tokens [B, T] of a batch's sequences, at most so many together and only those of one length."""
    if batch.attention_mask is None:
        yield from batch.tokens.split(at_once)
        return
    lengths = batch.attention_mask.sum(1)
    for length in lengths.unique():
        rows = lengths == length
        yield from batch.tokens[rows][batch.attention_mask[rows]].view(-1, int(length)).split(at_once)


@torch.no_grad()
def observe(
    calibration: Evaluator,
    on_states: Callable[[int, Tensor, Tensor, Tensor], None],
    projections: Sequence[OutputProjection],
    on_heads: Callable[[int, Tensor], None],
) -> int:
    """Run the dense model once over all sequences and show every layer's states; return the tokens spent.

    on_states gets (position of the layer, query [B, H, T, C], key [B, G, T, C], value [B, G, T, C]), on_heads gets
    (position, input of the output projection [B, T, H, C]), all in float32. The language model's head is not run.
    """

    masked, batch = calibration.masked, calibration.batch

    def states(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        on_states(position, query.float(), key.float(), value.float())

    def heads(position: int, outputs: Tensor) -> None:
        on_heads(position, outputs.float())

    with masked.recording(states), recording_heads(projections, heads):
        for tokens in without_padding(batch, calibration.at_once):
            masked.model.base_model(input_ids=tokens.to(masked.device), use_cache=False)
    return len(batch) * batch.length
