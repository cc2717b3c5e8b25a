"""trainer.batch_size=auto: as many sequences in a step as memory holds."""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.learning.fit import Fit, backward_in_parts, is_out_of_memory, out_of_memory_alone, release
from mechint.masking.masked_model import MaskedModel
from mechint.metrics.dense_outputs import DenseOutputs
from mechint.metrics.objectives import Objective
from mechint.runtime import distributed
from mechint.runtime.memory import free_bytes, held_bytes, peak_bytes

log = logging.getLogger(__name__)

# The part of the free memory that a step may take; the rest is for what changes between steps.
USABLE = 0.9


def largest_batch(masked: MaskedModel, rows: Tensor, objective: Objective, dense_bytes: int) -> int:
    """The largest power of two of sequences, for each process, whose step fits in the memory that is free.

    Steps forward and backward of 1, 2, 4, ... of the rows [N, T + 1] are tried, at most all, as long as twice what
    the last one took would fit as well. dense_bytes: capacity for the dense model's outputs, which take their part.

    Raises UserError where memory cannot be seen, or a single sequence does not fit.
    """
    device, size = masked.device, 1
    free, before = free_bytes(device), held_bytes(device)
    if free is None or before is None:
        raise UserError(
            "trainer.batch_size=auto cannot see here how much memory there is; give a number, e.g. 8"
        )
    dense = DenseOutputs(masked, rows, 0)
    room = USABLE * free / (1 if device.type == "cuda" else distributed.on_this_machine())
    if objective.needs_dense:
        room -= Fit(1)(lambda _: DenseOutputs(masked, rows, dense_bytes).bytes_on_device())
    while True:
        step = partial(_step, masked, rows[:size], objective, dense)
        try:
            peak = peak_bytes(step, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1 or distributed.size() > 1:  # the others may wait for this one
                raise out_of_memory_alone() from error
            size //= 2
            break
        assert peak is not None
        enough = 2 * size * distributed.size() > len(rows) or 2 * (peak - before) > room
        if distributed.total(torch.tensor(float(enough))).item() > 0:
            break
        size *= 2
    release()
    size *= distributed.size()
    log.info("trainer.batch_size=auto: %d sequences in a step", size)
    return size


def _step(masked: MaskedModel, batch: Tensor, objective: Objective, dense: DenseOutputs) -> None:
    """One step on batch [B, T + 1], with gates for each sequence, which take more memory than common ones."""
    gates = torch.ones(len(batch), masked.space.num_channels, device=masked.device)
    backward_in_parts(masked, objective, dense, batch, torch.arange(len(batch)), gates, len(batch))
