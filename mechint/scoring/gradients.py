"""Gradients of a loss with respect to gates, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mechint.masking.masked_model import MaskedModel
from mechint.masking.units import Units

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
    with torch.enable_grad():
        logits = masked.logits(batch[:, :-1], leaf)
        (gradients,) = torch.autograd.grad(loss(logits, batch).sum(), leaf)
    return gradients


def unit_gradients(units: Units, gradients: Tensor) -> Tensor:
    """Gradients [B, U] with respect to units' gates: by the chain rule, sums of their channels' [B, N]."""
    sums = gradients.new_zeros(len(gradients), units.count)
    return sums.index_add_(1, units.of_channel.to(gradients.device), gradients)
