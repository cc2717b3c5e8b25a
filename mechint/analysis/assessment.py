"""What several seeds say about their masks, and what is tested on the consensus mask."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechint.analysis.consensus import Selections
from mechint.analysis.describing import Record
from mechint.analysis.inertness import measure_inertness, subset_counts
from mechint.analysis.necessity import Necessity, measure_necessity
from mechint.analysis.preparation import Prepared
from mechint.analysis.stability import Stability
from mechint.analysis.trials import Trials
from mechint.data.packing import even_rows
from mechint.learning.trainer import Training
from mechint.masking import Units
from mechint.masking.ablation import Ablation
from mechint.metrics.agreement import Agreement
from mechint.metrics.evaluation import Evaluator, faithfulness
from mechint.metrics.spread import Spread
from mechint.results import RunFiles
from mechint.results.evidence import Evidence, evidence_of

log = logging.getLogger(__name__)

FEWEST_ROWS = 4  # evaluation sequences of a trial, where there are as many; a few are needed to see noise


@dataclass
class Assessment:
    """Agreement of the seeds' runs, and trials on their consensus mask keep, bool [U]."""

    settings: Stability
    prepared: Prepared
    units: Units
    selections: Selections
    keep: Tensor
    runs: Sequence[RunFiles]
    batch_size: int
    ablation: Ablation
    _necessity: Necessity | None = field(default=None, init=False)

    def record(self, metrics: Record, seed: int) -> Record:
        """The `stability` entry of result.json, apart from the null control.

        metrics: what the consensus mask does on all evaluation data. seed: of the random subsets.
        """
        digests = {run.result.dataset.evaluation_digest for run in self.runs}
        assert digests == {self.prepared.data.evaluation_digest}, "all seeds are measured on the same tokens"
        generator = torch.Generator().manual_seed(seed)
        counts = subset_counts(self.keep, self.settings.subset_sizes) if self.settings.subset_draws else []
        trials, most = self._trials(2 * len(counts) * self.settings.subset_draws)
        return {
            "seeds": [run.result.seed for run in self.runs],
            **agreement_record(self.runs),
            "single": single_record(self.runs),
            "consensus": self._consensus_record(metrics),
            "necessity": self._necessity_record(trials, most, generator),
            "inertness": self._inertness_record(trials, counts, generator),
            "null": None,
        }

    @property
    def evidence(self) -> Evidence:
        """What is known of every channel."""
        count = self.units.count
        rise = error = torch.full((count,), torch.nan)
        if self._necessity:
            rise, error = self._necessity.on_units(count)
        flat = {"frequency": self.selections.frequency, "necessity": rise, "necessity_error": error}
        spread = {name: self.units.to_channels(value) for name, value in flat.items()}
        return evidence_of(self.units.space, **spread, unit=self.units.of_channel)

    def _consensus_record(self, metrics: Record) -> Record:
        dense, empty, masked = (metrics[name]["loss"] for name in ("dense", "empty", "masked"))
        frequency = self.selections.frequency[self.keep]
        return {
            "kl": metrics["masked"]["kl"],
            "loss": masked,
            "faithfulness": faithfulness(dense, empty, masked),
            "kl_recovered": kl_recovered(metrics),
            "units": len(frequency),
            "unanimous_units": int((frequency == 1).sum()),
            "mean_frequency": float(frequency.mean()),
        }

    def _trials(self, subsets: int) -> tuple[Trials, int]:
        """Trials on as many evaluation rows as the budget allows, and how many kept units can be tried."""
        data = self.prepared.data.evaluation
        length, seeds = data.length, len(self.runs)
        # Each run also measures four models on all evaluation data.
        seen = sum(run.result.cost.tokens for run in self.runs) + 4 * seeds * data.size
        sequences = self.settings.budget * seen / length
        masks = subsets + (int(self.keep.sum()) if self.settings.necessity else 0)
        count = min(max(FEWEST_ROWS, int(sequences / max(masks, 1))), max(1, self.settings.tokens // length))
        chosen = data[torch.from_numpy(even_rows(len(data), count))]
        affordable = int(sequences / len(chosen))
        most = max(1, affordable - subsets, affordable // 2)
        evaluator = Evaluator(self.prepared.masked, chosen, self.ablation, self.batch_size)
        return Trials(evaluator, self.units, self.keep), most

    def _necessity_record(self, trials: Trials, most: int, generator: torch.Generator) -> Record | None:
        kept = int(self.keep.sum())
        if not self.settings.necessity or not kept:
            return None
        log.info("removing each of %d kept units alone", min(kept, most))
        started = time.perf_counter()
        self._necessity = measure_necessity(trials, most, generator)
        return self._necessity.as_record(trials.tokens, kept, time.perf_counter() - started)

    def _inertness_record(
        self, trials: Trials, counts: Sequence[int], generator: torch.Generator
    ) -> Record | None:
        if not counts:
            return None
        log.info("adding back, and removing, random subsets of %s units", ", ".join(map(str, counts)))
        started = time.perf_counter()
        found = measure_inertness(trials, counts, self.settings.subset_draws, generator)
        return {**found, "seconds": time.perf_counter() - started}


def agreement_record(runs: Sequence[RunFiles]) -> Record:
    """IoU of the runs' masks and how often channels are kept, beside chance."""
    agreement = Agreement.of([list(run.masks.values()) for run in runs])
    iou, chance, layers = agreement.iou, agreement.chance, agreement.chance_layers
    return {
        "iou": {
            "mean": iou and iou.mean,
            "min": iou and iou.low,
            "max": iou and iou.high,
            "chance": chance and chance.mean,
            "chance_layers": layers and layers.mean,
        },
        "frequency_histogram": list(agreement.histogram),
        "frequency_histogram_chance": list(agreement.chance_histogram),
    }


def single_record(runs: Sequence[RunFiles]) -> Record:
    """What each seed's own mask does on evaluation data."""
    results = [run.result for run in runs]
    kl = [result.metrics.masked.kl for result in results]
    spread = Spread.of(kl)
    return {
        "kl": kl,
        "kl_mean": spread and spread.mean,
        "kl_sd": spread and spread.sd,
        "loss": [result.metrics.masked.loss for result in results],
        "faithfulness": [result.faithfulness for result in results],
        "kl_recovered": [kl_recovered(result.as_json()["metrics"]) for result in results],
    }


def null_record(metrics: Record, seed: int, matrices: int, training: Training) -> Record:
    """What the same method does on the model with permuted weights, against that model's own dense outputs."""
    dense, empty, masked = (metrics[name]["loss"] for name in ("dense", "empty", "masked"))
    return {
        "seed": seed,
        "matrices": matrices,
        "kl": metrics["masked"]["kl"],
        "kl_empty": metrics["empty"]["kl"],
        "kl_recovered": kl_recovered(metrics),
        "loss": {"dense": dense, "empty": empty, "masked": masked},
        "faithfulness": faithfulness(dense, empty, masked),
        "seconds": training.seconds,
    }


def kl_recovered(metrics: Record) -> float | None:
    """1 - KL of the masked / KL of the empty model: 1 as the dense model, 0 as the empty one; None for KL 0 of that.

    Unlike faithfulness it needs no model that is good at the text.
    """
    empty = metrics["empty"]["kl"]
    return None if not empty else 1 - metrics["masked"]["kl"] / empty
