"""Losses on logits that exist for a few positions at a time.

The gradient with respect to the hidden states is computed together with the loss, chunk by chunk, so the backward
pass needs neither the logits nor the output embedding again (as in Liger Kernel, Hsu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mechint.masking.head import Head

# One float32 tensor of logits may take so many bytes; four to five of them exist at a time.
CHUNK_BYTES = 2**26

# From a chunk's logits [P, V] in float32, its positions, and whether a gradient is wanted: the loss [P], and its
# gradient with respect to the logits [P, V] or None.
ChunkLoss = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]


def chunks(positions: int, vocab_size: int) -> list[slice]:
    """Cut positions into chunks whose logits stay below CHUNK_BYTES."""
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]


def loss_by_chunks(head: Head, hidden: Tensor, loss: ChunkLoss) -> Tensor:
    """A loss [..., ] in float32 of every position of hidden states [..., D], differentiable in them once."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    return _ByChunks.apply(flat, head, loss).view(hidden.shape[:-1])


class _ByChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, loss: ChunkLoss) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if wanted else None
        for chunk in chunks(len(hidden), head.vocab_size(hidden)):
            leaf = hidden[chunk].detach()
            with torch.set_grad_enabled(wanted):
                logits = head(leaf.requires_grad_(wanted))  # [P, V]
            losses[chunk], of_logits = loss(logits.detach().float(), chunk, wanted)
            if gradient is not None:
                assert of_logits is not None
                (gradient[chunk],) = torch.autograd.grad(logits, leaf, of_logits.to(logits.dtype))
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradient.unsqueeze(-1).to(of_hidden.dtype), None, None


def normalised(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [P, V] and the logarithm of their normaliser [P], with one exponential per logit."""
    probabilities = logits.softmax(-1)
    return probabilities, logits.amax(-1) - probabilities.amax(-1).log()
