"""Chance level: random masks with the same counts per layer, kind and KV head as the mask of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechint.analysis.preparation import Prepared
from mechint.data.packing import even_rows
from mechint.errors import UserError
from mechint.masking import Units
from mechint.masking.ablation import Ablation
from mechint.masking.random_masks import matched_random_masks
from mechint.metrics.evaluation import Evaluator, faithfulness
from mechint.metrics.metric import KL, NLL
from mechint.results.result import RandomMasks

FEWEST_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What every run is held against.

    random_masks: how many random masks with the same counts per layer, kind and KV head are measured; 0: none. tokens:
    evaluation tokens that each is measured on, at most. budget: together they see at most this fraction of the tokens
    that learning saw, with fewer tokens each, but no fewer than four sequences.

    Raises UserError for values out of range.
    """

    random_masks: int = 19
    tokens: int = 4096
    budget: float = 0.25

    def __post_init__(self) -> None:
        if self.random_masks < 0 or self.tokens < 1 or not self.budget > 0:
            raise UserError(
                "controls.random_masks must be at least 0, controls.tokens at least 1 and controls.budget above 0"
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
        chosen = data[torch.from_numpy(even_rows(len(data), count))]
        generator = torch.Generator().manual_seed(seed)
        masks = matched_random_masks(units, keep, self.random_masks, generator)
        evaluator = Evaluator(prepared.masked, chosen, ablation, at_once)
        gates = [units.to_channels(mask) for mask in (torch.zeros_like(keep.cpu()), keep.cpu(), *masks)]
        values = evaluator.over_positions(evaluator([None, *gates], [NLL, KL]))  # [3 + masks, 2]
        (dense, empty, own), kl = values[:3, 0].tolist(), values[2:, 1].tolist()
        faithful = [faithfulness(dense, empty, loss) for loss in values[3:, 0].tolist()]
        known = [value for value in faithful if value is not None]
        return RandomMasks(
            count=self.random_masks,
            tokens=chosen.size,
            kl=kl[1:],
            kl_mean=sum(kl[1:]) / self.random_masks,
            kl_of_mask=kl[0],
            faithfulness=faithful,
            faithfulness_mean=sum(known) / len(known) if known else None,
            faithfulness_of_mask=faithfulness(dense, empty, own),
            p=(1 + sum(value <= kl[0] for value in kl[1:])) / (1 + self.random_masks),
        )
