"""The steps that are held against each other, on one model and one batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from mechint.learning.dense_outputs import DenseOutputs
from mechint.learning.objectives import KlObjective, NllObjective, Objective
from mechint.masking import MaskedModel


class Steps:
    """One forward and backward pass each, on rows [B, T + 1] of random tokens.

    plain: of the frozen model, with a gradient only into the first layer's input. nll, kl: with half of the channels
    removed, other ones in every sequence, and a gradient only into the gates; the dense model's outputs for `kl` are
    there already.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int, sequence_length: int) -> None:
        self.model, self.masked = model, MaskedModel(model)
        vocab_size = model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(vocab_size, (batch_size, sequence_length + 1), generator=generator)
        self.rows = rows.to(model.device)
        gates = torch.rand(batch_size, self.masked.space.num_channels, generator=generator) > 0.5
        self._gates = gates.float().to(model.device).requires_grad_()
        self._numbers = torch.arange(batch_size)
        self._dense = DenseOutputs(self.masked, self.rows, 2**40)
        self._dense(self._numbers)

    @property
    def all(self) -> dict[str, Callable[[], None]]:
        """Every step by its name; `plain` is first."""
        return {
            "plain": self.plain,
            "nll": lambda: self._masked(NllObjective()),
            "kl": lambda: self._masked(KlObjective()),
        }

    def plain(self) -> None:
        """Whole logits and torch's own cross entropy, through the attention that masking would use."""
        embedding = self.model.get_input_embeddings()
        start = embedding(self.rows[:, :-1]).detach().requires_grad_()
        logits = self.model(inputs_embeds=start, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1).float(), self.rows[:, 1:].flatten()).backward()

    def _masked(self, objective: Objective) -> None:
        hidden = self.masked.hidden(self.rows[:, :-1], self._gates)
        wished: Tensor | None = self._dense(self._numbers) if objective.needs_dense else None
        objective(hidden, self.rows[:, 1:], wished, self.masked.head).backward()
        self._gates.grad = None
