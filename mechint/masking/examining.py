"""What a model's attention is like, found by running it on a few tokens: facts that a reader of a mask must know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from mechint.errors import UserError
from mechint.masking.head import WholeLogits
from mechint.masking.layers import other_layers, shared_layers, some_tokens
from mechint.masking.masked_model import MaskedModel
from mechint.masking.routing import enable_hooks, restore_attention
from mechint.masking.space import KINDS, ChannelSpace

NUM_TOKENS = 8

# Logits that differ by less than this fraction of the largest one are the same but for rounding.
SAME = 1e-3

# Keys and values are the same numbers if they differ by less than this many rounding errors.
ROUNDING = 64


@dataclass(frozen=True)
class AttentionFacts:
    """What masks cannot change, and what they change together.

    other_layers: number -> class of what layers without softmax attention have instead. shared_layers: number -> names
    of the modules that read a layer's keys and values instead of having their own. tied_layers: numbers of the layers
    whose keys (before the rotation) and values are the same numbers, so that a cache needs one of them.
    transposed_layers: numbers of those whose weights of K are those of V transposed. bypassed: whether earlier tokens
    still reach a prediction when all V channels are removed.
    """

    other_layers: dict[int, str]
    shared_layers: dict[int, list[str]]
    tied_layers: tuple[int, ...]
    transposed_layers: tuple[int, ...]
    bypassed: bool

    def notes(self) -> tuple[str, ...]:
        """The facts in words."""
        notes = []
        if self.other_layers:
            kinds = sorted(set(self.other_layers.values()))
            notes.append(
                f"layers without keys and values to mask: {_numbers(self.other_layers)} ({', '.join(kinds)})"
            )
        for number, readers in self.shared_layers.items():
            notes.append(
                f"keys and values of layer {number} are also read by {', '.join(readers)}, which have none of their "
                "own; its mask acts there too"
            )
        if self.bypassed:
            notes.append(
                "there is a second path around attention: with all V channels removed, earlier tokens still change "
                "the prediction, and no mask removes that"
            )
        if self.tied_layers:
            notes.append(
                f"K = V in layers {_numbers(self.tied_layers)}: both are the same numbers (keys before any rotation) "
                "and are stored once; mask.tie_kv=true gives both one mask"
            )
        if self.transposed_layers:
            notes.append(
                f"K = V^T in layers {_numbers(self.transposed_layers)}: the weights of one are those of the other "
                "transposed; keys and values differ, so a cache stores both"
            )
        return tuple(notes)


@torch.no_grad()
def examine(masked: MaskedModel) -> AttentionFacts:
    """The facts about a model's attention. Raises UserError where it sees later tokens."""
    _refuse_two_ways(masked)
    return AttentionFacts(
        other_layers(masked.model, masked.space),
        shared_layers(masked.model, masked.space),
        _tied_layers(masked),
        _transposed_layers(masked),
        _is_bypassed(masked),
    )


@torch.no_grad()
def check_routing(masked: MaskedModel, tokens: Tensor) -> None:
    """Raise UserError unless the model, made ready for masks, still computes what it did before, on tokens [B, T].

    To be called with the length that a run uses: some architectures change with the length.
    """
    routed = _outputs(masked, tokens)
    restore_attention(masked.model, masked.implementation)
    try:
        untouched = _outputs(masked, tokens)
    finally:
        enable_hooks(masked.model)
    if not _same(routed, untouched):
        raise UserError(
            f"architecture {masked.model.config.model_type!r} computes something else when its attention is routed "
            f"through masks (sequences of {tokens.shape[1]} tokens); it is not supported"
        )


def stored_channels(space: ChannelSpace, keep: Tensor, tied_layers: Sequence[int]) -> int:
    """How many numbers a cache holds for each token where the channels `keep`, bool [N], are kept.

    Where K = V (`AttentionFacts.tied_layers`), a channel that both or one of them need is stored once.
    """
    count = 0
    for position, layer in enumerate(space.layers):
        key, value = (space.view(keep, position, kind) for kind in KINDS)
        count += int((key | value).sum()) if layer.index in tied_layers else int(key.sum() + value.sum())
    return count


def _outputs(masked: MaskedModel, tokens: Tensor) -> Tensor:
    """Final hidden states [B, T, D], or logits [B, T, V] where the head is not understood."""
    if isinstance(masked.head, WholeLogits):
        return masked.model(input_ids=tokens, use_cache=False).logits
    return masked.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def _refuse_two_ways(masked: MaskedModel) -> None:
    tokens = some_tokens(masked.model, 1, NUM_TOKENS).repeat(2, 1)
    tokens[1, -1] = tokens[1, 0]
    first, second = masked.model(input_ids=tokens, use_cache=False).logits
    if not _same(first[:-1], second[:-1]):
        config = masked.model.config
        remedy = (
            'if it was trained to read from left to right, set "is_decoder": true in its config.json'
            if getattr(config, "is_decoder", True) is False
            else "give a decoder-only language model"
        )
        raise UserError(
            f"{config.model_type} reads in both directions: later tokens change earlier predictions; {remedy}"
        )


def _is_bypassed(masked: MaskedModel) -> bool:
    tokens = some_tokens(masked.model, 2, NUM_TOKENS)
    tokens[1, -1] = tokens[0, -1]
    gates = torch.ones(masked.space.num_channels, device=masked.device)
    for position in range(len(masked.space.layers)):
        masked.space.view(gates, position, "v").zero_()
    first, second = masked.logits(tokens, gates)
    return not _same(first[-1], second[-1])


def _tied_layers(masked: MaskedModel) -> tuple[int, ...]:
    """Found on sequences of one token, at position 0, where rotations change nothing (but for a scale)."""
    tied: list[int] = []

    def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        if key.shape != value.shape:
            return
        k, v = key.double(), value.double()
        scale = float((k * v).sum() / (v * v).sum().clamp_min(1e-300))
        left = float((k - scale * v).abs().max())
        if scale > 0 and left <= ROUNDING * torch.finfo(key.dtype).eps * float(k.abs().max()):
            tied.append(masked.space.layers[position].index)

    with masked.recording(record):
        masked.model(input_ids=some_tokens(masked.model, NUM_TOKENS, 1), use_cache=False)
    return tuple(dict.fromkeys(tied))


def _transposed_layers(masked: MaskedModel) -> tuple[int, ...]:
    """Found in the weights, where K and V have projections of their own or thirds of one."""
    found = []
    for layer in masked.space.layers:
        module: Any = masked.model.get_submodule(layer.name)
        if isinstance(fused := getattr(module, "c_attn", None), Conv1D):
            parts = fused.weight.chunk(3, dim=1)[1:]
        else:
            parts = [getattr(getattr(module, name, None), "weight", None) for name in ("k_proj", "v_proj")]
        key, value = parts
        if not isinstance(key, Tensor) or not isinstance(value, Tensor) or key.shape != value.shape[::-1]:
            continue
        if key.shape == value.shape and torch.equal(key, value.T):
            found.append(layer.index)
    return tuple(found)


def _same(first: Tensor, second: Tensor) -> bool:
    return float((first - second).abs().max()) <= SAME * float(first.abs().max())


def _numbers(numbers: dict[int, str] | tuple[int, ...]) -> str:
    """Numbers with runs as ranges, e.g. `0-2, 4`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
