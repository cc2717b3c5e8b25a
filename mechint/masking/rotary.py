"""Which Key channels the rotary position embedding rotates together, found by measuring it."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.masked_model import MaskedModel

# Large positions turn even the slowest pairs by a visible angle; they are only ever used for one-token sequences.
POSITIONS = (100_003, 250_007, 333_331, 419_999, 611_953, 700_001, 850_009, 999_983)
NUM_TOKENS = 8


class _Keys:
    """Keeps the keys [B, G, C] of one-token sequences, layer by layer."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}

    def __call__(self, position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        self.keys[position] = key[:, :, 0].double()


def rotary_partners(masked: MaskedModel) -> list[Tensor]:
    """For each layer the partner of every key channel, LongTensor [C]; a channel that is not rotated is its own
    partner.

    A one-token sequence attends only to itself, so at every layer its key before rotation is the same at all
    positions, and a rotated pair (a, b) is known by k_a^2 + k_b^2 staying constant while k_a^2 alone does not.
    This needs no knowledge of the architecture's layout (halves, interleaved, partial, none in some layers).

    Raises UserError where the channels do not pair up.
    """
    widths = [layer.key_width for layer in masked.space.layers]
    if not has_rotary_embedding(masked):
        return [torch.arange(width) for width in widths]
    energies = _energies_over_positions(masked)
    return [_pair_up(energy, masked.space.layers[i].name) for i, energy in enumerate(energies)]


def has_rotary_embedding(masked: MaskedModel) -> bool:
    """Whether the model rotates keys by position at all."""
    return any("rotary" in type(module).__name__.lower() for module in masked.model.modules())


def _energies_over_positions(masked: MaskedModel) -> list[Tensor]:
    """For each layer the change of every channel's squared key over positions, [samples, C]."""
    highest = masked.model.config.get_text_config().vocab_size - 1
    tokens = torch.linspace(0, highest, NUM_TOKENS, device=masked.device).long()[:, None]  # [B, 1]
    squares: list[list[Tensor]] = [[] for _ in masked.space.layers]
    for position in POSITIONS:
        recorder = _Keys()
        with masked.recording(recorder), torch.no_grad():
            masked.model(input_ids=tokens, position_ids=torch.full_like(tokens, position), use_cache=False)
        for i, keys in recorder.keys.items():
            squares[i].append(keys.square().cpu())  # [B, G, C]
    changes = [torch.stack(layer) - layer[0] for layer in squares]  # [positions, B, G, C]
    return [change.flatten(0, 2) / change.abs().max().clamp_min(1e-30) for change in changes]


def _pair_up(change: Tensor, layer: str, tolerance: float = 0.05) -> Tensor:
    """Partner of every channel from the changes [samples, C] of its square."""
    strength = change.norm(dim=0)  # [C]
    partners = torch.arange(change.shape[1])
    rotated = strength > 1e-3 * strength.max()
    if strength.max() == 0 or not rotated.any():
        return partners
    # |change_a + change_b|^2 for every pair, relative to the pair's own size
    gram = change.T @ change  # [C, C]
    size = gram.diagonal()
    residual = (size[:, None] + size[None, :] + 2 * gram) / (size[:, None] + size[None, :]).clamp_min(1e-30)
    residual.fill_diagonal_(torch.inf)
    residual[~rotated, :] = torch.inf
    residual[:, ~rotated] = torch.inf
    best = residual.argmin(dim=1)
    mutual = best[best] == torch.arange(len(best))
    good = residual.gather(1, best[:, None])[:, 0] < tolerance
    if not bool((mutual & good)[rotated].all()):
        raise UserError(f"the keys of layer {layer!r} do not rotate in pairs; use mask.unit=channel")
    partners[rotated] = best[rotated]
    return partners
