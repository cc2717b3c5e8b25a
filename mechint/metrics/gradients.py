"""The gradient of a metric in the gates: what learning, finishing and scoring go by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.masking.ablation import ZERO, Ablation
from mechint.masking.masked_model import MaskedModel
from mechint.masking.units import Units
from mechint.metrics.metric import Metric

# The dense model's final hidden states [B, T, D] of the sequences of a batch with these numbers [B].
Dense = Callable[[Tensor], Tensor]


def gate_gradient(
    masked: MaskedModel,
    batch: Batch,
    gates: Tensor,
    metric: Metric,
    ablation: Ablation = ZERO,
    dense: Dense | None = None,
    at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean of a metric over the sequences of a batch, and its gradient in the gates.

    gates: float [N], shared, or [B, N], one row for each sequence; the gradient has their shape. dense: computed here
    if not given and needed. at_once: sequences that go through the model together; the mean over all is the same.
    """
    batch = batch.to(masked.device)
    leaf = gates.detach().requires_grad_()
    total = torch.zeros((), device=masked.device)
    for part in torch.arange(len(batch)).split(at_once or len(batch)):
        piece = batch[part[0] : part[-1] + 1]
        own = leaf if leaf.ndim == 1 else leaf[part[0] : part[-1] + 1]
        wished = None
        if metric.needs_dense:
            with torch.no_grad():
                wished = masked.hidden(piece) if dense is None else dense(part)
        with torch.enable_grad():
            loss = metric.mean(masked.hidden(piece, own, ablation), piece, wished, masked.head)
            if len(part) < len(batch):
                loss = loss * (len(part) / len(batch))
            loss.backward()
        total = total + loss.detach()
    assert leaf.grad is not None
    return total, leaf.grad


def sequence_gradients(
    masked: MaskedModel,
    batch: Batch,
    gates: Tensor,
    metric: Metric,
    ablation: Ablation = ZERO,
    dense: Dense | None = None,
) -> Tensor:
    """Gradient [B, N] of every sequence's own mean of a metric in gates [N] that all of them meet.

    Every sequence has a copy of the gates, so one backward pass gives all gradients.
    """
    copies = gates.detach().float().to(masked.device).expand(len(batch), -1).clone()
    return len(batch) * gate_gradient(masked, batch, copies, metric, ablation, dense)[1]


def unit_gradients(units: Units, gradients: Tensor) -> Tensor:
    """Gradients [B, U] with respect to units' gates: by the chain rule, sums of their channels' [B, N]."""
    sums = gradients.new_zeros(len(gradients), units.count)
    return sums.index_add_(1, units.of_channel.to(gradients.device), gradients)
