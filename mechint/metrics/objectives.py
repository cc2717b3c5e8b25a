"""What a mask is asked to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.masking.head import Head, WholeLogits
from mechint.metrics.chunked import loss_by_chunks, normalised

WHOLE = WholeLogits()


def kl_per_position(dense: Tensor, masked: Tensor, head: Head = WHOLE) -> Tensor:
    """KL(dense || masked) in nats at every position, [B, T], from final hidden states [B, T, D] and their head.

    Without a head, from logits [B, T, V]. dense may be [1, T, D]. Only the gradient with respect to `masked` exists.
    """
    flat = dense.detach().expand_as(masked).reshape(-1, dense.shape[-1])

    def loss(logits: Tensor, chunk: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            dense_logits = head(flat[chunk]).float()  # [P, V]
        difference = dense_logits - logits
        wished, dense_normaliser = normalised(dense_logits)
        del dense_logits
        cross = difference.mul_(wished).sum(-1)
        del difference
        probabilities, normaliser = normalised(logits)
        # sum_v p (d - m) - log Z_d + log Z_m, which is exactly 0 where both are the same
        kl = cross - (dense_normaliser - normaliser)
        return kl, probabilities.sub_(wished) if wanted else None

    return loss_by_chunks(head, masked, loss)


def nll_per_position(hidden: Tensor, targets: Tensor, head: Head = WHOLE) -> Tensor:
    """Negative log-likelihood of targets [B, T] in nats, [B, T], from final hidden states [B, T, D] and their head.

    Without a head, from logits [B, T, V].
    """
    flat = targets.reshape(-1, 1)

    def loss(logits: Tensor, chunk: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        probabilities, normaliser = normalised(logits)
        nll = normaliser - logits.gather(1, flat[chunk]).squeeze(1)
        if not wanted:
            return nll, None
        return nll, probabilities.scatter_add_(1, flat[chunk], -torch.ones_like(nll).unsqueeze(1))

    return loss_by_chunks(head, hidden, loss)


class KlObjective:
    """Stay as the dense model: mean over positions of KL(dense || masked), in nats."""

    name = "kl"
    needs_dense = True

    def __call__(self, hidden: Tensor, targets: Tensor, dense: Tensor | None, head: Head = WHOLE) -> Tensor:
        """Scalar from final hidden states [B, T, D], masked and dense; targets are not used."""
        assert dense is not None
        return kl_per_position(dense, hidden, head).mean()


class NllObjective:
    """Stay good at the text: mean next-token negative log-likelihood, in nats; may end below the dense model's."""

    name = "nll"
    needs_dense = False

    def __call__(self, hidden: Tensor, targets: Tensor, dense: Tensor | None, head: Head = WHOLE) -> Tensor:
        """Scalar from masked final hidden states [B, T, D] and targets [B, T]."""
        return nll_per_position(hidden, targets, head).mean()


Objective = KlObjective | NllObjective
