"""Metrics of a masked model, position by position; the differentiable ones are also objectives of learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mechint.data.batch import NO_TOKEN, Batch, Positions
from mechint.errors import UserError
from mechint.masking.head import Head, WholeLogits
from mechint.metrics.chunked import loss_by_chunks, normalised

WHOLE = WholeLogits()


@dataclass(frozen=True)
class Asked:
    """The right and wrong next tokens at P positions, LongTensor [P], or [P, A] where there are several; None where
    nobody asks.
    """

    answers: Tensor | None
    foils: Tensor | None

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Asked:
        """All positions of a batch, flat."""
        parts = (batch.answers, batch.foils)
        return cls(*(None if part is None else part.flatten(0, 1).to(device) for part in parts))

    def __getitem__(self, chunk: slice | Tensor) -> Asked:
        return Asked(*(None if part is None else part[chunk] for part in (self.answers, self.foils)))


class Metric(ABC):
    """A number at every position of every sequence, from logits; a frozen dataclass, so that equals are known as such.

    name: in result.json. needs_dense: whether the dense model's logits are needed. differentiable: whether it has a
    gradient. minimised: whether less of it is better, so that masks can be learned by it. stands_for: the metric whose
    surrogate it is. positions: those whose mean it is.
    """

    name: ClassVar[str]
    needs_dense: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    minimised: ClassVar[bool] = True
    stands_for: ClassVar[str | None] = None
    positions: Positions = "counted"

    @abstractmethod
    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The number at P positions [P] and, if it is wanted, its gradient in the logits [P, V].

        logits, dense: [P, V] in float32, of the masked and of the dense model; neither may be changed.
        """

    def per_position(self, hidden: Tensor, batch: Batch, dense: Tensor | None, head: Head = WHOLE) -> Tensor:
        """The number at every position, [B, T], differentiable in the final hidden states [B, T, D].

        dense: those of the dense model, [B, T, D] or [1, T, D]. Without a head both are logits [B, T, V]. It is 0 at
        positions that the metric leaves out.
        """
        asked = Asked.of(batch, hidden.device)
        flat: Tensor | None = None
        if self.needs_dense:
            assert dense is not None, f"{self.name} compares with the dense model"
            flat = dense.detach().expand_as(hidden).reshape(-1, dense.shape[-1])
        places = wanted_positions(batch, [self.positions], hidden.device)
        if places is not None:
            asked, flat = asked[places], None if flat is None else flat[places]

        def loss(logits: Tensor, chunk: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
            of_dense = None
            if flat is not None:
                with torch.no_grad():
                    of_dense = head(flat[chunk]).float()  # [P, V]
            return self.at(logits, of_dense, asked[chunk], wanted)

        if places is None:
            return loss_by_chunks(head, hidden, loss)
        values = loss_by_chunks(head, hidden.flatten(0, 1)[places], loss)
        return values.new_zeros(batch.tokens.numel()).index_put((places,), values).view(batch.tokens.shape)

    def per_sequence(self, hidden: Tensor, batch: Batch, dense: Tensor | None, head: Head = WHOLE) -> Tensor:
        """Mean over its positions of every sequence, [B]."""
        return batch.mean(self.per_position(hidden, batch, dense, head), self.positions)

    def mean(self, hidden: Tensor, batch: Batch, dense: Tensor | None, head: Head = WHOLE) -> Tensor:
        """Mean over sequences, each by its positions; what learning minimises."""
        values = self.per_position(hidden, batch, dense, head)
        return (
            values.mean() if batch.at(self.positions) is None else batch.mean(values, self.positions).mean()
        )


def wanted_positions(batch: Batch, kinds: Sequence[Positions], device: torch.device) -> Tensor | None:
    """Numbers of the positions, counted through a whole batch, that are of any of these kinds, [P]; None: all.

    Logits are the largest tensors there are, so none are made where nobody looks.
    """
    chosen = [batch.at(kind) for kind in set(kinds)]
    known = [part for part in chosen if part is not None]
    if len(known) < len(chosen):
        return None
    return torch.stack(known).any(0).flatten().nonzero().squeeze(1).to(device)


@dataclass(frozen=True)
class KlDivergence(Metric):
    """KL(dense || masked) in nats: stay close to the dense model.

    positions: `counted`, those whose answer counts, or `all` that are not padding.
    """

    positions: Positions = "counted"

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


@dataclass(frozen=True)
class NegativeLogLikelihood(Metric):
    """Negative log-likelihood of the correct next token in nats; a mask may even do better than the dense model.

    Where several tokens are correct it is that of all of them together. positions: as for `kl`.
    """

    positions: Positions = "counted"

    name = "nll"

    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """NLL [P]."""
        assert asked.answers is not None, "nll needs the tokens that should follow"
        if asked.answers.ndim == 2:
            mass, of_mass = log_mass(logits, asked.answers, wanted)
            whole = logits.logsumexp(-1)
            return whole - mass, logits.softmax(-1) - of_mass if of_mass is not None else None
        answers = asked.answers.unsqueeze(1)
        probabilities, normaliser = normalised(logits)
        nll = normaliser - logits.gather(1, answers).squeeze(1)
        if not wanted:
            return nll, None
        return nll, probabilities.scatter_add_(1, answers, -torch.ones_like(nll).unsqueeze(1))


@dataclass(frozen=True)
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


def log_mass(logits: Tensor, tokens: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """log sum exp of the logits [P, V] of some tokens [P] or [P, A], NO_TOKEN apart, [P]; and its gradient [P, V]."""
    chosen = tokens.unsqueeze(1) if tokens.ndim == 1 else tokens
    there = chosen != NO_TOKEN
    values = logits.gather(1, chosen.clamp_min(0)).masked_fill(~there, -torch.inf)  # [P, A]
    mass = values.logsumexp(1)
    if not wanted:
        return mass, None
    shares = (values - mass.unsqueeze(1)).exp().masked_fill(~there, 0)
    return mass, torch.zeros_like(logits).scatter_add_(1, chosen.clamp_min(0), shares)


@dataclass(frozen=True)
class LogitDifference(Metric):
    """The task's own number: log P(right answers) - log P(wrong ones) in nats, the difference of two logits where there
    is one of each.
    """

    name = "logit_diff"
    minimised = False

    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Difference [P]."""
        if asked.answers is None or asked.foils is None:
            raise UserError(
                f"{self.name} needs right and wrong answers: use a dataset of prompts, e.g. dataset=ioi"
            )
        right, of_right = log_mass(logits, asked.answers, wanted)
        wrong, of_wrong = log_mass(logits, asked.foils, wanted)
        return right - wrong, of_right - of_wrong if of_right is not None and of_wrong is not None else None


@dataclass(frozen=True)
class Accuracy(Metric):
    """Whether the right answers together are more likely than the wrong ones."""

    name = "accuracy"
    differentiable = False
    minimised = False

    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """1 or 0, [P]."""
        assert not wanted, "accuracy has no gradient"
        return (LOGIT_DIFF.at(logits, dense, asked, False)[0] > 0).float(), None


@dataclass(frozen=True)
class LogitDifferenceGap(Metric):
    """|logit difference - that of the dense model|: keep the dense model's preference and no more than it.

    The surrogate of the logit difference, whose own gradient would push a mask beyond the dense model.
    """

    name = "logit_diff_gap"
    needs_dense = True
    stands_for = "logit_diff"

    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Distance [P]."""
        assert dense is not None
        here, slope = LOGIT_DIFF.at(logits, None, asked, wanted)
        distance = here - LOGIT_DIFF.at(dense, None, asked, False)[0]
        return distance.abs(), None if slope is None else slope * distance.sign().unsqueeze(1)


@dataclass(frozen=True)
class AccuracySurrogate(Metric):
    """log(1 + exp(-logit difference)): the logistic loss, the smooth surrogate of accuracy."""

    name = "logistic_loss"
    stands_for = "accuracy"

    def at(
        self, logits: Tensor, dense: Tensor | None, asked: Asked, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Loss [P]."""
        here, slope = LOGIT_DIFF.at(logits, None, asked, wanted)
        loss = torch.nn.functional.softplus(-here)
        return loss, None if slope is None else -torch.sigmoid(-here).unsqueeze(1) * slope


KL, NLL, TOP1 = KlDivergence(), NegativeLogLikelihood(), Top1Agreement()
LOGIT_DIFF, ACCURACY = LogitDifference(), Accuracy()
