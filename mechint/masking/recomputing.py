"""Activation checkpointing: layers keep only their input and compute the rest again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mechint.masking.attention import HOOK, Hook


@contextmanager
def recomputing(model: nn.Module, attention_names: Sequence[str]) -> Iterator[None]:
    """Inside the block every layer around one of these attention modules keeps only its input for the backward pass.

    The gates that were there in the forward pass are there again when a layer is computed once more.
    """
    layers = [_layer_around(model, name) for name in attention_names]
    for layer, name in zip(layers, attention_names, strict=True):
        layer.forward = _recomputed(layer.forward, model.get_submodule(name))
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is there again


def _layer_around(model: nn.Module, attention_name: str) -> nn.Module:
    """The member of the model's list of layers that an attention module belongs to."""
    parts = attention_name.split(".")
    for end in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:end])), nn.ModuleList):
            return model.get_submodule(".".join(parts[: end + 1]))
    raise AssertionError(f"{attention_name} is in no list of layers")


def _recomputed(forward: Callable[..., Any], attention: nn.Module) -> Callable[..., Any]:
    def run(*arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **keywords)
        hook = getattr(attention, HOOK, None)

        def again(*arguments: Any, **keywords: Any) -> Any:
            with _hooked(attention, hook):
                return forward(*arguments, **keywords)

        return checkpoint(again, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords)

    return run


@contextmanager
def _hooked(attention: nn.Module, hook: Hook | None) -> Iterator[None]:
    """Give an attention module the hook that it had, for the time of the block."""
    before = getattr(attention, HOOK, None)
    setattr(attention, HOOK, hook)
    try:
        yield
    finally:
        if before is None:
            delattr(attention, HOOK)
        else:
            setattr(attention, HOOK, before)
