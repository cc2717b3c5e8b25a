"""Metrics of a masked model, position by position; the differentiable ones are also objectives of learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.masking.head import Head, WholeLogits
from mechint.metrics.chunked import loss_by_chunks, normalised

WHOLE = WholeLogits()


@dataclass(frozen=True)
class Asked:
    """The right and a wrong next token at P positions, LongTensor [P] each; None where nobody asks."""

    answers: Tensor | None
    foils: Tensor | None

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Asked:
        """All positions of a batch, flat."""
        return cls(
            *(None if part is None else part.flatten().to(device) for part in (batch.answers, batch.foils))
        )

    def __getitem__(self, chunk: slice) -> Asked:
        return Asked(*(None if part is None else part[chunk] for part in (self.answers, self.foils)))


class Metric(ABC):
    """A number at every position of every sequence, from logits.

    name: as in `objective=` and result.json. needs_dense: whether the dense model's logits are needed. differentiable:
    whether masks can be learned by it; they minimise it.
    """

    name: ClassVar[str]
    needs_dense: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True

    @abstractmethod
    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The number at P positions [P] and, if it is wanted, its gradient in the logits [P, V].

        logits, dense: [P, V] in float32, of the masked and of the dense model; neither may be changed.
        """

    def per_position(self, hidden: Tensor, batch: Batch, dense: Tensor | None, head: Head = WHOLE) -> Tensor:
        """The number at every position, [B, T], differentiable in the final hidden states [B, T, D].

        dense: those of the dense model, [B, T, D] or [1, T, D]. Without a head both are logits [B, T, V].
        """
        asked = Asked.of(batch, hidden.device)
        flat: Tensor | None = None
        if self.needs_dense:
            assert dense is not None, f"{self.name} compares with the dense model"
            flat = dense.detach().expand_as(hidden).reshape(-1, dense.shape[-1])

        def loss(logits: Tensor, chunk: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
            of_dense = None
            if flat is not None:
                with torch.no_grad():
                    of_dense = head(flat[chunk]).float()  # [P, V]
            return self.at(logits, of_dense, asked[chunk], wanted)

        return loss_by_chunks(head, hidden, loss)

    def per_sequence(self, hidden: Tensor, batch: Batch, dense: Tensor | None, head: Head = WHOLE) -> Tensor:
        """Mean over the positions that count of every sequence, [B]."""
        return batch.mean(self.per_position(hidden, batch, dense, head))

    def mean(self, hidden: Tensor, batch: Batch, dense: Tensor | None, head: Head = WHOLE) -> Tensor:
        """Mean over sequences, each by the positions that count; what learning minimises."""
        values = self.per_position(hidden, batch, dense, head)
        return values.mean() if batch.counted is None else batch.mean(values).mean()


class KlDivergence(Metric):
    """KL(dense || masked) in nats: stay close to the dense model."""

    name = "kl"
    needs_dense = True

    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """KL [P], exactly 0 where both are the same."""
        assert dense is not None
        wished, dense_normaliser = normalised(dense)
        cross = (dense - logits).mul_(wished).sum(-1)
        probabilities, normaliser = normalised(logits)
        # sum_v p (d - m) - log Z_d + log Z_m
        kl = cross - (dense_normaliser - normaliser)
        return kl, probabilities.sub_(wished) if wanted else None


class NegativeLogLikelihood(Metric):
    """Negative log-likelihood of the correct next token in nats; a mask may even do better than the dense model."""

    name = "nll"

    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """NLL [P]."""
        assert asked.answers is not None, "nll needs the tokens that should follow"
        answers = asked.answers.unsqueeze(1)
        probabilities, normaliser = normalised(logits)
        nll = normaliser - logits.gather(1, answers).squeeze(1)
        if not wanted:
            return nll, None
        return nll, probabilities.scatter_add_(1, answers, -torch.ones_like(nll).unsqueeze(1))


class Top1Agreement(Metric):
    """Whether the masked model's most likely token is the dense model's."""

    name = "top1_agreement"
    needs_dense = True
    differentiable = False

    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """1 or 0, [P]."""
        assert dense is not None
        assert not wanted, "agreement has no gradient"
        return (logits.argmax(-1) == dense.argmax(-1)).float(), None


KL, NLL, TOP1 = KlDivergence(), NegativeLogLikelihood(), Top1Agreement()
