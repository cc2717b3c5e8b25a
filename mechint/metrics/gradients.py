"""Gradients of a loss with respect to gates, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mechint.masking.masked_model import MaskedModel
from mechint.masking.units import Units
from mechint.metrics.objectives import nll_per_position

# Loss of every sequence [B], from final hidden states [B, T, D] and rows [B, T + 1].
SequenceLoss = Callable[[Tensor, Tensor], Tensor]


def sequence_nll(masked: MaskedModel) -> SequenceLoss:
    """Mean next-token negative log-likelihood of every sequence, in nats."""
    return lambda hidden, batch: nll_per_position(hidden, batch[:, 1:], masked.head).mean(1)


def gate_gradients(
    masked: MaskedModel, batch: Tensor, gates: Tensor, loss: SequenceLoss | None = None
) -> Tensor:
    """Gradients [B, N] of the loss of every one of rows [B, T + 1] with respect to gates [N], at these gates.

    Every sequence has gates of its own, so one backward pass gives them all. The loss is `sequence_nll` if not given.
    """
    batch = batch.to(masked.device)
    leaf = gates.detach().float().to(masked.device).expand(len(batch), -1).clone().requires_grad_()
    with torch.enable_grad():
        losses = (loss or sequence_nll(masked))(masked.hidden(batch[:, :-1], leaf), batch)  # [B]
    (gradients,) = torch.autograd.grad(losses.sum(), leaf)
    return gradients


def unit_gradients(units: Units, gradients: Tensor) -> Tensor:
    """Gradients [B, U] with respect to units' gates: by the chain rule, sums of their channels' [B, N]."""
    sums = gradients.new_zeros(len(gradients), units.count)
    return sums.index_add_(1, units.of_channel.to(gradients.device), gradients)
