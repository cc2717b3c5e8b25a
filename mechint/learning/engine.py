"""How layers are computed forward and backward while a mask is learned."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
from torch.distributed.fsdp import FSDPModule

from mechint.errors import UserError, one_line
from mechint.masking.masked_model import MaskedModel

log = logging.getLogger(__name__)


@contextmanager
def engine(masked: MaskedModel, recompute: bool, compile_: bool) -> Iterator[None]:
    """Inside the block layers are computed again in the backward pass (`recompute`), or compiled, or neither.

    Raises UserError for both at once, for a model that is split over devices and compiled, and where the compiler
    fails.
    """
    if compile_ and (recompute or isinstance(masked.model.base_model, FSDPModule)):
        raise UserError(
            "trainer.compile=true cannot be combined with trainer.activation_checkpointing or model.shard"
        )
    if recompute:
        with masked.recomputing():
            yield
        return
    if not compile_:
        yield
        return
    log.info("trainer.compile=true: the first step compiles, which takes a minute or two")
    try:
        with masked.compiled():
            yield
    except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
        raise UserError(
            f"this model cannot be compiled here ({type(error).__name__}: {one_line(error, 120)}); "
            "use trainer.compile=false"
        ) from error
    finally:
        torch.compiler.reset()  # compiled code holds on to its model
