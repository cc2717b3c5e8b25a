"""Gradients of a loss with respect to gates, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mechint.masking.attention import Hook, hooks
from mechint.masking.masked_model import MaskedModel
from mechint.masking.space import Kind
from mechint.masking.units import Units
from mechint.scoring.projections import attention_modules

# Loss of every sequence [B], from logits [B, T, V] and rows [B, T + 1].
SequenceLoss = Callable[[Tensor, Tensor], Tensor]


def sequence_nll(logits: Tensor, batch: Tensor) -> Tensor:
    """Mean next-token negative log-likelihood of every sequence, [B], in nats."""
    nll = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none")
    return nll.view(len(batch), -1).mean(1)


def gate_gradients(
    masked: MaskedModel, batch: Tensor, gates: Tensor, loss: SequenceLoss = sequence_nll
) -> Tensor:
    """Gradients [B, N] of the loss of every one of rows [B, T + 1] with respect to gates [N], at these gates.

    Every sequence has gates of its own, so one backward pass gives them all.
    """
    batch = batch.to(masked.device)
    leaf = gates.detach().float().to(masked.device).expand(len(batch), -1).clone().requires_grad_()
    with torch.enable_grad(), sequence_gates(masked, leaf):
        logits = masked.model(input_ids=batch[:, :-1], use_cache=False).logits
        (gradients,) = torch.autograd.grad(loss(logits, batch).sum(), leaf)
    return gradients


def unit_gradients(units: Units, gradients: Tensor) -> Tensor:
    """Gradients [B, U] with respect to units' gates: by the chain rule, sums of their channels' [B, N]."""
    sums = gradients.new_zeros(len(gradients), units.count)
    return sums.index_add_(1, units.of_channel.to(gradients.device), gradients)


@contextmanager
def sequence_gates(masked: MaskedModel, gates: Tensor) -> Iterator[None]:
    """As `MaskedModel.gated`, with gates [B, N]: a set for every sequence of the batch."""

    def part(flat: Tensor, position: int, kind: Kind) -> Tensor:
        """[..., G, 1, C] of a flat tensor [..., N]."""
        heads = masked.space.layers[position].num_kv_heads
        return flat[..., masked.space.slices[position, kind]].unflatten(-1, (heads, 1, -1))

    def gate(states: Tensor, position: int, kind: Kind) -> Tensor:
        here = part(gates, position, kind).to(states.dtype)
        if masked.fill is None:
            return states * here
        return states * here + part(masked.fill, position, kind).to(states.dtype) * (1 - here)

    def hook_for(position: int) -> Hook:
        def hook(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return gate(key, position, "k"), gate(value, position, "v")

        return hook

    with hooks([(module, hook_for(position)) for position, module in enumerate(attention_modules(masked))]):
        yield
