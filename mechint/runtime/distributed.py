"""Several processes on one run, started by torchrun: each takes a share of every batch, and all have the same scores.

Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


@contextmanager
def processes() -> Iterator[bool]:
    """Join the other processes for the time of the block; yields whether this is the first, which
    writes the results.
    """
    if not under_torchrun():
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield rank() == 0
    finally:
        dist.destroy_process_group()


def size() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def on_this_machine() -> int:
    """How many of the processes share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def mine(chosen: Tensor) -> Tensor:
    """This process's part of a batch of rows [B]; the parts are equally large where B is a multiple of `size`."""
    return chosen[rank() :: size()]


def shares(count: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through rows 0 .. count - 1 in batches: this process's numbers [B] of each, and their weights [B].

    Weights are 1; a process that would run out of rows repeats one with weight 0, so that all make the same calls.
    """
    for batch in torch.arange(count).split(batch_size):
        chosen = mine(batch)
        if size() == 1 or len(chosen) == -(-len(batch) // size()):
            yield chosen, torch.ones(len(chosen))
        else:
            yield torch.cat([chosen, batch[:1]]), torch.cat([torch.ones(len(chosen)), torch.zeros(1)])


def total(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over all processes."""
    for tensor in tensors if size() > 1 else ():
        dist.all_reduce(tensor)
        tensor /= size()


def from_first(value: Value) -> Value:
    """What the first process says."""
    if size() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]
