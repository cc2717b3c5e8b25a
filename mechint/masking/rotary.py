"""Which Key channels the rotary position embedding rotates together, found by measuring it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mechint.errors import UserError
from mechint.masking.layers import some_tokens
from mechint.masking.masked_model import MaskedModel
from mechint.masking.weights import attention_modules, linear_layers

# Large positions turn even the slowest pairs by a visible angle; they are only ever used for one-token sequences.
POSITIONS = (100_003, 250_007, 333_331, 419_999, 611_953, 700_001, 850_009, 999_983)
NUM_TOKENS = 8

# A channel rotates if its square changes by more than this many rounding errors of its own size.
ROUNDING = 16

# Two channels are partners if this little of their changes is left in the sum of both.
LEFT_OVER = 0.05


def rotary_partners(masked: MaskedModel) -> list[Tensor]:
    """For each layer the partner of every key channel, LongTensor [C]; a channel that is not rotated is its own
    partner.

    A one-token sequence attends only to itself, so at every layer its key before rotation is the same at all
    positions, and a rotated pair (a, b) is known by k_a^2 + k_b^2 staying constant while k_a^2 alone does not: the
    changes of partners correlate at -1. What the keys are made of is replaced by random numbers of one size, so that
    no channel is too weak beside another to be seen, and each is judged against its own size. This needs no knowledge
    of the architecture's layout (halves, interleaved, partial, none in some layers).

    Raises UserError where channels rotate, but do not pair up.
    """
    widths = [layer.key_width for layer in masked.space.layers]
    if not has_rotary_embedding(masked):
        return [torch.arange(width) for width in widths]
    return [
        _pair_up(squares, rounding_of(masked), layer.name)
        for squares, layer in zip(_squares_over_positions(masked), masked.space.layers, strict=True)
    ]


def has_rotary_embedding(masked: MaskedModel) -> bool:
    """Whether the model rotates keys by position at all."""
    modules = list(masked.model.modules())
    return _table_size(masked) is not None or any("rotary" in type(m).__name__.lower() for m in modules)


def _table_size(masked: MaskedModel) -> int | None:
    """How many positions there are where rotations are looked up in a table, as GPT-J does; None elsewhere."""
    modules: list[Any] = [m for m in masked.model.modules() if hasattr(m, "rotary_dim")]
    tables = [module.embed_positions for module in modules if hasattr(module, "embed_positions")]
    return len(tables[0]) if tables else None


def rounding_of(masked: MaskedModel) -> float:
    """The change of a square, as a fraction of it, that rounding explains."""
    return ROUNDING * torch.finfo(masked.model.dtype).eps


@torch.no_grad()
def _squares_over_positions(masked: MaskedModel) -> list[Tensor]:
    """For each layer the squared keys of one-token sequences, [positions, samples, C]."""
    tokens = some_tokens(masked.model, NUM_TOKENS, 1)  # [B, 1]
    squares: list[list[Tensor]] = [[] for _ in masked.space.layers]

    def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        squares[position].append(key[:, :, 0].double().square().flatten(0, 1).cpu())

    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        for module in attention_modules(masked):
            for linear in linear_layers(module):
                stack.enter_context(linear.register_forward_hook(_random(generator)))
        stack.enter_context(masked.recording(record))
        table = _table_size(masked)
        for position in POSITIONS if table is None else [position % table for position in POSITIONS]:
            masked.model(input_ids=tokens, position_ids=torch.full_like(tokens, position), use_cache=False)
    return [torch.stack(layer) for layer in squares]


def _random(generator: torch.Generator) -> Callable[..., Tensor]:
    """A hook that replaces a linear layer's outputs by random numbers, the same ones at every call."""
    drawn: list[Tensor] = []

    def after(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        if not drawn:
            numbers = torch.randn(NUM_TOKENS, output.shape[-1], generator=generator)
            drawn.append((0.5 + numbers.abs()) * numbers.sign())  # none is close to zero
        rows = drawn[0].to(output)[: len(output)]
        return rows.view(len(rows), *[1] * (output.ndim - 2), -1).expand_as(output).contiguous()

    return after


def _pair_up(squares: Tensor, rounding: float, layer: str) -> Tensor:
    """Partner of every channel from its squares [positions, samples, C]."""
    change = (squares - squares[0]).flatten(0, 1)  # [positions * samples, C]
    own = squares.flatten(0, 1).norm(dim=0)
    rotated = change.norm(dim=0) > rounding * own
    partners = torch.arange(change.shape[1])
    if not rotated.any():
        return partners
    # |change_a + change_b|^2 for every pair, relative to the pair's own size
    gram = change.T @ change  # [C, C]
    size = gram.diagonal()
    both = (size[:, None] + size[None, :]).clamp_min(1e-300)
    residual = (both + 2 * gram) / both
    residual.fill_diagonal_(torch.inf)
    residual[~rotated, :] = torch.inf
    residual[:, ~rotated] = torch.inf
    best = residual.argmin(dim=1)
    mutual = best[best] == torch.arange(len(best))
    good = residual.gather(1, best[:, None])[:, 0] < LEFT_OVER
    if not bool((mutual & good)[rotated].all()):
        raise UserError(f"the keys of layer {layer!r} do not rotate in pairs; use mask.unit=channel")
    partners[rotated] = best[rotated]
    return partners
