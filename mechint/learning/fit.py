"""As many sequences at once as memory holds."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.masked_model import MaskedModel
from mechint.metrics.dense_outputs import DenseOutputs
from mechint.metrics.objectives import Objective
from mechint.runtime import distributed

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
                "out of memory: %d sequences at a time from here on, with the same result up to rounding; a lower "
                "trainer.batch_size avoids the attempt",
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


def backward_in_parts(
    masked: MaskedModel,
    objective: Objective,
    dense: DenseOutputs,
    batch: Tensor,
    chosen: Tensor,
    channel_gates: Tensor,
    at_once: int,
) -> tuple[Tensor, Tensor]:
    """The objective on a batch [B, T + 1] of the rows with numbers `chosen` [B], and its gradient in the gates.

    channel_gates: [N] or, per sequence, [B, N]. The batch goes through the model in parts of `at_once` sequences,
    whose mean, weighted by their sizes, is the batch's.
    """
    gates = channel_gates.detach().requires_grad_()
    total = torch.zeros((), device=masked.device)
    for part in torch.arange(len(batch)).split(at_once):
        tokens = batch[part[0] : part[-1] + 1]
        own = gates if gates.ndim == 1 else gates[part[0] : part[-1] + 1]
        hidden = masked.hidden(tokens[:, :-1], own)  # [B, T, D]
        wished = dense(chosen[part]) if objective.needs_dense else None
        loss = objective(hidden, tokens[:, 1:], wished, masked.head)
        if len(part) < len(batch):
            loss = loss * (len(part) / len(batch))
        loss.backward()
        total = total + loss.detach()
    assert gates.grad is not None
    return total, gates.grad
