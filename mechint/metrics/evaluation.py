"""Measuring masks: one evaluator for hard and soft masks, on any data, by any metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking.ablation import ZERO, Ablation
from mechint.masking.masked_model import MaskedModel
from mechint.metrics.chunked import chunks
from mechint.metrics.dense_outputs import DenseOutputs
from mechint.metrics.gradients import sequence_gradients
from mechint.metrics.metric import KL, NLL, TOP1, Asked, Metric, wanted_positions
from mechint.runtime import distributed

# So many masks share one pass of the dense model and its logits; their hidden states are held at the same time.
MASKS_AT_ONCE = 4

# Bootstrap samples of evaluation sequences.
DRAWS = 1000

# With fewer documents, sequences are drawn instead; with fewer families, prompts.
FEWEST_DOCUMENTS, FEWEST_FAMILIES = 10, 2

# Perplexities beyond it are no floating-point numbers.
LARGEST_LOSS = 700.0


@dataclass
class Evaluator:
    """A masked model on data: measures masks and differentiates metrics, sequence by sequence.

    ablation: what replaces the units that a mask removes. at_once: sequences that go through the model together.
    dense_bytes: capacity for keeping the dense model's outputs from one call to the next.
    tokens: predicted tokens that went through the model under a mask so far, of all processes. on_sequences: called
    with the number of sequences that are done while masks are measured.
    """

    masked: MaskedModel
    batch: Batch
    ablation: Ablation = ZERO
    at_once: int = 8
    dense_bytes: int = 0
    on_sequences: Callable[[int], None] | None = None
    tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._dense = DenseOutputs(self.masked, self.batch, self.dense_bytes)

    @torch.no_grad()
    def __call__(self, gates: Sequence[Tensor | None], metrics: Sequence[Metric]) -> Tensor:
        """Means over the positions that count of every sequence, double [masks, metrics, M], on the CPU.

        gates: bool or float [N] for each mask; None is the dense model.
        """
        found = torch.zeros(len(gates), len(metrics), len(self.batch), dtype=torch.double)
        found = found.to(self.masked.device)
        ready = [None if gate is None else gate.to(self.masked.device).float() for gate in gates]
        done = 0
        dense_needed = any(metric.needs_dense for metric in metrics)
        for chosen, weight in distributed.shares(len(self.batch), self.at_once):
            batch = self.batch[chosen].to(self.masked.device)
            dense = self._dense(chosen) if dense_needed or any(gate is None for gate in gates) else None
            for start in range(0, len(gates), MASKS_AT_ONCE):
                group = ready[start : start + MASKS_AT_ONCE]
                hidden = [
                    dense if gate is None else self.masked.hidden(batch, gate, self.ablation)
                    for gate in group
                ]
                values = self._values(hidden, dense, batch, metrics)  # [masks, metrics, B]
                found[start : start + len(group), :, chosen.to(found.device)] += values * weight.to(values)
            self.tokens += distributed.size() * batch.tokens.numel() * sum(g is not None for g in ready)
            done += self.at_once
            if self.on_sequences is not None:
                self.on_sequences(min(done, len(self.batch)))
        return distributed.total(found).cpu()

    def mean(self, gates: Tensor | None, metric: Metric) -> float:
        """One metric of one mask, mean over all positions that count."""
        return float(self.over_positions(self([gates], [metric]))[0, 0])

    def over_positions(self, values: Tensor) -> Tensor:
        """Means over all positions that count, [...], from those of every sequence [..., M]."""
        return over_positions(values, self.batch.positions)

    def gradients(self, gates: Tensor, metric: Metric, sequences: Tensor | None = None) -> Tensor:
        """Gradient of every sequence's mean of a metric in gates [N], float [M, N].

        sequences: the numbers of M sequences; None: all.
        """
        numbers = torch.arange(len(self.batch)) if sequences is None else sequences
        found = torch.zeros(len(numbers), len(gates), device=self.masked.device)
        for chosen, weight in distributed.shares(len(numbers), self.at_once):
            gradients = self.part_gradients(numbers[chosen], gates, metric)
            found[chosen.to(found.device)] += gradients * weight.to(gradients)[:, None]
            self.tokens += distributed.size() * len(chosen) * self.batch.length
        return distributed.total(found)

    def part_gradients(self, chosen: Tensor, gates: Tensor, metric: Metric) -> Tensor:
        """The same for the sequences with these numbers, [B, N], by this process alone."""
        part = self.batch[chosen]
        return sequence_gradients(
            self.masked,
            part,
            gates,
            metric,
            self.ablation,
            lambda numbers: self._dense(chosen[numbers]),
        )

    def dense(self, chosen: Tensor) -> Tensor:
        """The dense model's final hidden states [B, T, D] for the sequences with these numbers."""
        return self._dense(chosen)

    def _values(
        self, hidden: Sequence[Tensor | None], dense: Tensor | None, batch: Batch, metrics: Sequence[Metric]
    ) -> Tensor:
        """Values [masks, metrics, B] from final hidden states [B, T, D]; logits exist for a few positions at a time."""
        head, asked = self.masked.head, Asked.of(batch, self.masked.device)
        states = [state for state in hidden if state is not None]
        size = batch.tokens.numel()
        places = wanted_positions(batch, [metric.positions for metric in metrics], states[0].device)
        found = torch.zeros(len(hidden), len(metrics), size, dtype=torch.double, device=states[0].device)
        for chunk in chunks(size if places is None else len(places), head.vocab_size(states[0])):
            here = chunk if places is None else places[chunk]
            dense_logits = None if dense is None else head(dense.flatten(0, 1)[here]).float()  # [P, V]
            for number, state in enumerate(states):
                logits = dense_logits if state is dense else head(state.flatten(0, 1)[here]).float()
                assert logits is not None
                for place, metric in enumerate(metrics):
                    values = metric.at(logits, dense_logits, asked[here], False)[0]
                    found[number, place, here] = values.double()
        shaped = found.view(len(hidden), len(metrics), *batch.tokens.shape)
        means = [
            torch.stack([batch.mean(values, metric.positions) for values in shaped[:, place]])
            for place, metric in enumerate(metrics)
        ]
        return torch.stack(means, 1)


@dataclass(frozen=True)
class Measured:
    """Several models on the same data.

    metrics: model -> loss, perplexity, bits_per_byte, kl, top1_agreement, and the standard error of each, with _se
    behind its name, where there are two sequences or more; loss and kl in nats per predicted token. sequences: the mean
    loss, kl and top1_agreement of every sequence, double [models, M], models in the same order. positions: how many
    positions of each sequence count, [M]. documents: the document of each sequence, or the family of each prompt,
    LongTensor [M]; None where unknown.
    """

    metrics: dict[str, dict[str, float]]
    sequences: dict[str, Tensor]
    positions: Tensor
    documents: Tensor | None = None

    def first(self, count: int) -> Measured:
        """The first models alone."""
        names = list(self.metrics)[:count]
        sequences = {name: values[:count] for name, values in self.sequences.items()}
        metrics = {name: self.metrics[name] for name in names}
        return Measured(metrics, sequences, self.positions, self.documents)

    def and_then(self, others: Measured) -> Measured:
        """These models and then others, on the same data."""
        sequences = {
            name: torch.cat([values, others.sequences[name]]) for name, values in self.sequences.items()
        }
        return Measured({**self.metrics, **others.metrics}, sequences, self.positions, self.documents)

    def resampled(self, name: str) -> Tensor:
        """Means of loss, kl or top1_agreement over all positions, double [draws, models], of bootstrap samples."""
        return resampled(self.sequences[name], self.positions, self.documents)

    @property
    def faithfulness_se(self) -> float | None:
        """Standard error of the masked model's faithfulness, over bootstrap samples of sequences."""
        losses = self.resampled("loss")
        return standard_error((losses[:, 1] - losses[:, 2]) / (losses[:, 1] - losses[:, 0]))

    @property
    def loss_degradation_percent_se(self) -> float | None:
        """Standard error of the masked model's loss degradation in percent, likewise."""
        losses = self.resampled("loss")
        return standard_error(100 * (losses[:, 2] - losses[:, 0]) / losses[:, 0])

    @property
    def kl_recovered_se(self) -> float | None:
        """Standard error of 1 - KL(masked) / KL(empty), likewise."""
        kl = self.resampled("kl")
        return standard_error(1 - kl[:, 2] / kl[:, 1])


def measure(
    evaluator: Evaluator,
    variants: Mapping[str, Tensor | None],
    num_bytes: int | None,
    documents: Tensor | None = None,
    objective: Metric | None = None,
) -> Measured:
    """Loss, perplexity, bits per byte, KL from the dense model and top-1 agreement with it, for several masks at once.

    variants: gates [N] each; None is the dense model. num_bytes: UTF-8 bytes of the predicted text; where unknown,
    bits_per_byte is left out. documents: the document of each sequence, [M], where known. objective: another metric,
    which becomes `objective`.

    Raises UserError where outputs are not finite.
    """
    measured, names = [NLL, KL, TOP1], ["loss", "kl", "top1_agreement"]
    if objective is not None:
        measured, names = [*measured, objective], [*names, "objective"]
    values = evaluator(list(variants.values()), measured)
    totals = evaluator.over_positions(values)  # [models, metrics]
    for name, numbers in zip(variants, totals.tolist(), strict=True):
        if not all(map(math.isfinite, numbers)):
            raise UserError(
                f"the {name} model's outputs on the evaluation data are not finite; set dtype=float32"
            )
    tokens, positions = evaluator.batch.size, evaluator.batch.positions
    samples = resampled(values, positions, documents)  # [draws, models, metrics]
    metrics = {
        name: _named(dict(zip(names, numbers, strict=True)), tokens, num_bytes)
        | (_errors(samples[:, number], names, tokens, num_bytes) if len(positions) > 1 else {})
        for number, (name, numbers) in enumerate(zip(variants, totals.tolist(), strict=True))
    }
    sequences = {name: values[:, place] for place, name in enumerate(names[:3])}
    return Measured(metrics, sequences, positions, documents)


def over_positions(values: Tensor, positions: Tensor) -> Tensor:
    """Means over all positions, [...], from those of sequences [..., M] of which so many positions count, [M]."""
    return (values * positions).sum(-1) / positions.sum()


def families_among(documents: Tensor | None, positions: Tensor) -> Tensor | None:
    """Documents [M] where they are families of prompts, each of which asks for one answer; None for running text."""
    return documents if bool((positions == 1).all()) else None


def family_means(values: Tensor, families: Tensor | None) -> Tensor:
    """Means over the prompts of every family, [..., F], from values [..., M] and families [M]; None: all are their own.

    Prompts of a family are versions of each other, and no samples of their own.
    """
    if families is None:
        return values
    own, sizes = torch.unique(families.cpu(), return_inverse=True, return_counts=True)[1:]
    found = torch.zeros(*values.shape[:-1], len(sizes), dtype=values.dtype)
    return found.index_add_(-1, own, values) / sizes


def resampled(
    values: Tensor, positions: Tensor, documents: Tensor | None = None, draws: int = DRAWS
) -> Tensor:
    """Means over all positions, double [draws, ...], of bootstrap samples of M sequences, from their means [..., M].

    documents: the document of each sequence, or the family of each prompt, [M]. Documents are drawn whole, with
    replacement, since sequences of one are alike; sequences where documents are not known, or fewer than
    FEWEST_DOCUMENTS. Prompts of one family are versions of each other, and are drawn by family even where these are
    few. It is always the same ones for the same number, so that samples of two models match. A single sequence says
    nothing of the error: NaN.
    """
    if len(positions) < 2:
        return torch.full((draws, *values.shape[:-1]), math.nan, dtype=torch.double)
    drawn = torch.arange(len(positions))
    if documents is not None:
        own = torch.unique(documents, return_inverse=True)[1]
        fewest = FEWEST_DOCUMENTS if families_among(documents, positions) is None else FEWEST_FAMILIES
        drawn = own if int(own.max()) + 1 >= fewest else drawn
    count = int(drawn.max()) + 1
    generator = torch.Generator().manual_seed(count)
    chosen = torch.randint(count, (draws, count), generator=generator)
    times = torch.zeros(draws, count, dtype=torch.double).scatter_add_(
        1, chosen, torch.ones_like(chosen).double()
    )
    weights = times[:, drawn] * positions  # [draws, M]
    return torch.einsum("dm,...m->d...", weights, values) / weights.sum(1).view(-1, *[1] * (values.ndim - 1))


def standard_error(samples: Tensor) -> float | None:
    """Standard deviation of a statistic over bootstrap samples [draws]; None where one of them has none."""
    return float(samples.std()) if bool(samples.isfinite().all()) else None


def _errors(samples: Tensor, names: Sequence[str], tokens: int, num_bytes: int | None) -> dict[str, float]:
    """Standard errors from bootstrap samples [draws, metrics] of a model's numbers, loss first."""
    errors = {f"{name}_se": float(error) for name, error in zip(names, samples.std(0), strict=True)}
    errors["perplexity_se"] = float(samples[:, 0].clamp(max=LARGEST_LOSS).exp().std())
    if num_bytes is not None:
        errors["bits_per_byte_se"] = errors["loss_se"] * tokens / math.log(2) / num_bytes
    return errors


def _named(numbers: dict[str, float], tokens: int, num_bytes: int | None) -> dict[str, float]:
    metrics = {"perplexity": math.exp(min(numbers["loss"], LARGEST_LOSS))}
    if num_bytes is not None:
        metrics["bits_per_byte"] = numbers["loss"] * tokens / math.log(2) / num_bytes
    return numbers | metrics


def loss_degradation_percent(dense: float, masked: float) -> float:
    """100 (masked - dense) / dense, from losses; negative is improvement."""
    return 100 * (masked - dense) / dense


def faithfulness(dense: float, empty: float, masked: float) -> float | None:
    """(m_masked - m_empty) / (m_dense - m_empty) with m = -loss: 1 as the dense model, 0 as the empty one.

    None where the dense and the empty model are equally good, so that the ratio has no meaning.
    """
    if dense == empty:
        return None
    return (empty - masked) / (empty - dense)
