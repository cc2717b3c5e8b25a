"""What a mask is asked to keep."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl_per_position(dense: Tensor, masked: Tensor) -> Tensor:
    """KL(dense || masked) in nats at every position, [B, T], from two sets of logits [B, T, V]."""
    dense_log = F.log_softmax(dense.float(), dim=-1)
    masked_log = F.log_softmax(masked.float(), dim=-1)
    return (dense_log.exp() * (dense_log - masked_log)).sum(-1)


class KlObjective:
    """Stay as the dense model: mean over positions of KL(dense || masked), in nats."""

    name = "kl"
    needs_dense = True

    def __call__(self, logits: Tensor, targets: Tensor, dense: Tensor | None) -> Tensor:
        """Scalar from masked logits [B, T, V], targets [B, T] (unused) and dense logits [B, T, V]."""
        assert dense is not None
        return kl_per_position(dense, logits).mean()


class NllObjective:
    """Stay good at the text: mean next-token negative log-likelihood, in nats; may end below the dense model's."""

    name = "nll"
    needs_dense = False

    def __call__(self, logits: Tensor, targets: Tensor, dense: Tensor | None) -> Tensor:
        """Scalar from masked logits [B, T, V] and targets [B, T]."""
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


Objective = KlObjective | NllObjective
