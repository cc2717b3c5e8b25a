"""As many sequences at once as fit into memory."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking.masked_model import MaskedModel
from mechint.metrics.dense_outputs import DenseOutputs
from mechint.metrics.gradients import gate_gradient
from mechint.metrics.metric import Metric
from mechint.runtime import distributed
from mechint.runtime.memory import free_bytes, held_bytes, peak_bytes

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Fit:
    """How many sequences go through the model at once: at first `size`, half as many whenever memory runs out."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._warned = False

    def __call__(self, work: Callable[[int], Result]) -> Result:
        """The result of work(sequences at once), which is repeated with half as many where memory runs out.

        Raises UserError where one sequence at a time is too many.
        """
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise out_of_memory_alone() from error
                if distributed.size() > 1:  # the others would wait for ever for what this one repeats
                    raise UserError(
                        f"out of memory in process {distributed.rank()}; lower trainer.batch_size"
                    ) from error
            self._halve()

    def _halve(self) -> None:
        self.size //= 2
        release()  # outside the handler, whose error holds on to what was computed
        if not self._warned:
            log.warning(
                "out of memory: continuing with %d sequences at a time, with the same result up to rounding; a lower "
                "trainer.batch_size avoids this",
                self.size,
            )
        self._warned = True


def release() -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory_alone() -> UserError:
    """What to say where not even one sequence fits."""
    return UserError(
        "out of memory with a single sequence at a time; lower dataset.sequence_length, or set "
        "trainer.activation_checkpointing=true, dtype=bfloat16, trainer.dense_cache_gib=0 or device=cpu"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


# The part of the free memory that a step may take; the rest is for what changes between steps.
USABLE = 0.9


def largest_batch(masked: MaskedModel, batch: Batch, objective: Metric, dense_bytes: int) -> int:
    """The largest power of two of sequences, for each process, whose step fits in the memory that is free.

    Steps forward and backward of 1, 2, 4, ... of the sequences are tried, at most all, as long as twice what
    the last one took would fit as well. dense_bytes: capacity for the dense model's outputs, which take their part.

    Raises UserError where memory cannot be seen, or a single sequence does not fit.
    """
    device, size = masked.device, 1
    free, before = free_bytes(device), held_bytes(device)
    if free is None or before is None:
        raise UserError(
            "trainer.batch_size=auto cannot tell how much memory this device has; give a number, e.g. 8"
        )
    dense = DenseOutputs(masked, batch, 0)
    room = USABLE * free / (1 if device.type == "cuda" else distributed.on_this_machine())
    if objective.needs_dense:
        room -= Fit(1)(lambda _: DenseOutputs(masked, batch, dense_bytes).bytes_on_device())
    while True:
        step = partial(_step, masked, batch[:size], objective, dense)
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
        enough = 2 * size * distributed.size() > len(batch) or 2 * (peak - before) > room
        if distributed.total(torch.tensor(float(enough))).item() > 0:
            break
        size *= 2
    release()
    size *= distributed.size()
    log.info("trainer.batch_size=auto: %d sequences per step", size)
    return size


def _step(masked: MaskedModel, batch: Batch, objective: Metric, dense: DenseOutputs) -> None:
    """One step on a batch, with gates for each sequence, which take more memory than common ones."""
    gates = torch.ones(len(batch), masked.space.num_channels, device=masked.device)
    gate_gradient(masked, batch, gates, objective, dense=dense)
