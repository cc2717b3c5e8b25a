"""Chance level: random masks with the same counts per layer, kind and KV head as the mask of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mechint.analysis.preparation import Prepared
from mechint.circuits.scores import differ, faithfulness_of, interval_of
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import MaskedModel, Units
from mechint.masking.ablation import Ablation
from mechint.masking.random_masks import matched_random_masks
from mechint.masking.space import KINDS
from mechint.metrics.evaluation import Evaluator, faithfulness, resampled, standard_error
from mechint.metrics.gradients import unit_gradients
from mechint.metrics.metric import KL, LOGIT_DIFF, NLL, Metric
from mechint.metrics.spread import Spread
from mechint.results.result import RandomMasks

FEWEST_ROWS = 4

Match = Literal["counts", "norms"]


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What every run is held against.

    random_masks: how many random masks with the same counts per layer, kind and KV head are measured; 0: none. tokens:
    evaluation tokens that each is measured on, at most. budget: together they see at most this fraction of the tokens
    that learning saw, with fewer tokens each, but no fewer than four sequences. permutations: on how many models with
    permuted weights the same method runs where `stability.null_control` or `basis.proofs` asks for it; each takes as
    long as learning the run's own mask. match: random masks have the same `counts` alone, or the `norms` as well: as
    many units of every quarter of a head's units by the norm of their activations.

    Raises UserError for values out of range.
    """

    random_masks: int = 19
    tokens: int = 4096
    budget: float = 0.25
    permutations: int = 3
    match: Match = "counts"

    def __post_init__(self) -> None:
        if self.match not in get_args(Match):
            raise UserError(
                f"controls.match={self.match} is not known; use one of {', '.join(get_args(Match))}"
            )
        if self.random_masks < 0 or self.tokens < 1 or not self.budget > 0:
            raise UserError(
                "controls.random_masks must be at least 0, controls.tokens at least 1 and controls.budget above 0"
            )
        if self.permutations < 1:
            raise UserError(
                f"controls.permutations={self.permutations} must be at least 1; stability.null_control=false switches "
                "the permuted models off"
            )

    def measure(
        self,
        prepared: Prepared,
        units: Units,
        keep: Tensor,
        ablation: Ablation,
        at_once: int,
        seen: int,
        seed: int,
    ) -> RandomMasks | None:
        """Measure the random masks beside the run's, keep bool [U], on the same tokens; None where none are asked for.

        seen: tokens that learning saw. seed: of the draws.
        """
        if not self.random_masks:
            return None
        data = prepared.data.evaluation
        affordable = int(self.budget * seen / (self.random_masks + 3) / data.length)
        count = min(max(FEWEST_ROWS, affordable), max(1, self.tokens // data.length))
        rows = data.some(count)
        chosen, documents = data[rows], prepared.data.evaluation_documents
        generator = torch.Generator().manual_seed(seed)
        norms = activation_norms(prepared.masked, units, chosen, at_once) if self.match == "norms" else None
        masks = matched_random_masks(units, keep, self.random_masks, generator, norms)
        evaluator = Evaluator(prepared.masked, chosen, ablation, at_once)
        gates = [units.to_channels(mask) for mask in (torch.zeros_like(keep.cpu()), keep.cpu(), *masks)]
        metrics: list[Metric] = [NLL, KL]
        if prepared.data.task is not None:
            metrics.append(LOGIT_DIFF)
        values = evaluator([None, *gates], metrics)  # [3 + masks, metrics, M]
        means = evaluator.over_positions(values)
        (dense, empty, own), kl = means[:3, 0].tolist(), means[2:, 1].tolist()
        faithful = [faithfulness(dense, empty, loss) for loss in means[3:, 0].tolist()]
        known = Spread.of(faithful)
        documents = None if documents is None else documents[rows]
        samples = resampled(values, chosen.positions, documents)  # [draws, 3 + masks, metrics]
        losses, sampled_kl = samples[..., 0], samples[:, 2:, 1]
        sampled = (losses[:, 1:2] - losses[:, 2:]) / (losses[:, 1:2] - losses[:, :1])  # [draws, 1 + masks]
        of_random = Spread(tuple(kl[1:]))
        found = RandomMasks(
            count=self.random_masks,
            match=self.match,
            tokens=chosen.size,
            sequences=len(chosen),
            kl=kl[1:],
            kl_mean=of_random.mean,
            kl_mean_se=standard_error(sampled_kl[:, 1:].mean(1)),
            kl_sd=of_random.sd,
            kl_of_mask=kl[0],
            kl_of_mask_se=standard_error(sampled_kl[:, 0]),
            kl_gain=of_random.mean - kl[0],
            kl_gain_se=standard_error(sampled_kl[:, 1:].mean(1) - sampled_kl[:, 0]),
            faithfulness=faithful,
            faithfulness_mean=None if known is None else known.mean,
            faithfulness_mean_se=standard_error(sampled[:, 1:].mean(1)),
            faithfulness_of_mask=faithfulness(dense, empty, own),
            faithfulness_of_mask_se=standard_error(sampled[:, 0]),
            same=sum(torch.equal(mask, keep.cpu()) for mask in masks),
            p=(1 + sum(value <= kl[0] for value in kl[1:])) / (1 + self.random_masks),
        )
        if prepared.data.task is not None and differ(samples[:, 0, 2], samples[:, 1, 2]):
            on_task = faithfulness_of(means[0, 2], means[1, 2], means[2:, 2])  # [1 + masks]
            drawn = faithfulness_of(samples[:, :1, 2], samples[:, 1:2, 2], samples[:, 2:, 2])
            found.logit_diff_faithfulness = on_task[1:].tolist()
            found.logit_diff_faithfulness_mean = float(on_task[1:].mean())
            found.logit_diff_faithfulness_interval = interval_of(drawn[:, 1:].mean(1))
            found.logit_diff_faithfulness_of_mask = float(on_task[0])
            found.logit_diff_faithfulness_of_mask_interval = interval_of(drawn[:, 0])
        return found


@torch.no_grad()
def activation_norms(masked: MaskedModel, units: Units, batch: Batch, at_once: int) -> Tensor:
    """Root of the sum of squares of every unit's activations over a batch, without padding, float [U]."""
    space = masked.space
    squares = torch.zeros(space.num_channels, dtype=torch.double, device=masked.device)
    there: Tensor | None = None

    def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        for kind, states in zip(KINDS, (key, value), strict=True):
            wide = states.double().square()  # [B, G, T, C]
            if there is not None:
                wide = wide * there[:, None, :, None]
            space.view(squares, position, kind).add_(wide.sum((0, 2)))

    with masked.recording(record):
        for start in range(0, len(batch), at_once):
            part = batch[start : start + at_once].to(masked.device)
            there = part.attention_mask
            masked.hidden(part)
    return unit_gradients(units, squares[None])[0].sqrt().float().cpu()
