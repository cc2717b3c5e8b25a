"""What several seeds say of their masks: how far they agree, their consensus, and tests of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechint.analysis.null import kl_recovered
from mechint.analysis.preparation import Prepared
from mechint.analysis.trials import (
    Necessity,
    Trials,
    measure_inertness,
    measure_necessity,
    subset_counts,
)
from mechint.errors import UserError
from mechint.loggers import Progress
from mechint.masking import MaskSet, Pools, Units
from mechint.masking.ablation import Ablation
from mechint.masking.masks import flat_importance, flat_keep
from mechint.metrics.agreement import Agreement
from mechint.metrics.evaluation import Evaluator, Measured, faithfulness
from mechint.metrics.spread import Spread
from mechint.results import RunFiles
from mechint.results.evidence import NECESSITY, Evidence, evidence_of
from mechint.results.result import (
    Consensus,
    CostPart,
    InertnessInfo,
    NecessityInfo,
    SeedAgreement,
    SingleMasks,
    StabilityInfo,
)
from mechint.results.sequences import measured_by

log = logging.getLogger(__name__)

FEWEST_ROWS = 16  # evaluation sequences of a trial, if there are as many; fewer see no noise


@dataclass(kw_only=True)
class Stability:
    """Tests of the consensus mask of several seeds.

    necessity: whether to measure the removal of each kept unit alone. subset_draws: random subsets of units to add
    back, and to remove, for each size; 0: none. subset_sizes: their sizes, as fractions of the kept or the
    removed units, whichever are fewer. null_control: whether to run the method on models with permuted weights, too,
    as many as `controls.permutations` says. tokens: most evaluation tokens for each trial, but no fewer than 16
    sequences. budget: all trials together see at most this fraction of the tokens that learning saw in all seeds, with
    fewer tokens each, down to 16 sequences, or, where that is not enough, fewer units.
    """

    necessity: bool = True
    subset_draws: int = 10
    subset_sizes: Sequence[float] = (0.05, 0.2, 0.5)
    null_control: bool = True
    tokens: int = 8192
    budget: float = 0.5

    def __post_init__(self) -> None:
        if self.subset_draws < 0 or self.tokens < 1:
            raise UserError("stability.subset_draws must be at least 0 and stability.tokens at least 1")
        if not self.subset_sizes or not all(0 < size <= 1 for size in self.subset_sizes):
            raise UserError(
                f"stability.subset_sizes={list(self.subset_sizes)} must be fractions above 0, up to 1, e.g. [0.1, 0.5]"
            )
        self.subset_sizes = tuple(self.subset_sizes)
        if not self.budget > 0:
            raise UserError(f"stability.budget={self.budget} must be above 0; 1 is as much as the seeds saw")


@dataclass(frozen=True)
class Selections:
    """What S seeds chose. keep: bool [S, U]. importance: float [S, U]."""

    keep: Tensor
    importance: Tensor

    @classmethod
    def of(cls, units: Units, masks: Sequence[MaskSet]) -> Selections:
        """The units that saved masks keep."""
        keep = [units.of_channels(flat_keep(units.space, mask_set)) for mask_set in masks]
        importance = [units.of_channels(flat_importance(units.space, mask_set)) for mask_set in masks]
        return cls(torch.stack(keep), torch.stack(importance))

    @property
    def frequency(self) -> Tensor:
        """The fraction of seeds that keep each unit, [U]."""
        return self.keep.float().mean(0)

    def scores(self, pools: Pools) -> Tensor:
        """Scores [U] by which a pool keeps the units most often selected, ties by mean importance rank."""
        ranks = torch.stack([pools.ranks(importance) for importance in self.importance])
        return self.keep.double().sum(0) - ranks.double().mean(0) / self.keep.shape[1]


@dataclass
class Assessment:
    """Agreement of the seeds' runs, and trials on their consensus mask keep, bool [U].

    batch_size: sequences that go through the model at once. progress: shows how far a test is. parts: what the tests
    took, once `info` has made them.
    """

    settings: Stability
    prepared: Prepared
    units: Units
    selections: Selections
    keep: Tensor
    runs: Sequence[RunFiles]
    batch_size: int
    ablation: Ablation
    progress: Progress
    parts: list[CostPart] = field(default_factory=list, init=False)
    _necessity: Necessity | None = field(default=None, init=False)

    def info(self, measured: Measured, seed: int) -> StabilityInfo:
        """What result.json says of it, apart from the null control.

        measured: what the consensus mask does on all evaluation data. seed: of the random subsets.
        """
        results = [run.result for run in self.runs]
        digests = {result.dataset.evaluation_digest for result in results}
        assert digests == {self.prepared.data.evaluation_digest}, "all seeds are measured on the same tokens"
        generator = torch.Generator().manual_seed(seed)
        counts = subset_counts(self.keep, self.settings.subset_sizes) if self.settings.subset_draws else []
        trials, most = self._trials(2 * len(counts) * self.settings.subset_draws)
        agreement = Agreement.of([run.layer_masks for run in self.runs])
        return StabilityInfo(
            seeds=[result.config["seed"] for result in results],
            iou=_iou_of(agreement),
            frequency_histogram=list(agreement.histogram),
            frequency_histogram_chance=list(agreement.chance_histogram),
            single=_single_masks(self.runs),
            consensus=self._consensus(measured),
            necessity=self._test_necessity(trials, most, generator),
            inertness=self._test_inertness(trials, counts, generator),
            null=None,
        )

    @property
    def evidence(self) -> Evidence:
        """What is known of every channel."""
        count = self.units.count
        found = (
            dict.fromkeys(NECESSITY, torch.full((count,), torch.nan))
            if self._necessity is None
            else self._necessity.on_units(count)
        )
        flat = {"frequency": self.selections.frequency, **found}
        spread = {name: self.units.to_channels(value) for name, value in flat.items()}
        return evidence_of(self.units.space, **spread, unit=self.units.of_channel)

    def _consensus(self, measured: Measured) -> Consensus:
        dense, empty, masked = (measured.metrics[name] for name in ("dense", "empty", "masked"))
        frequency = self.selections.frequency[self.keep]
        return Consensus(
            kl=masked["kl"],
            kl_se=masked.get("kl_se"),
            loss=masked["loss"],
            loss_se=masked.get("loss_se"),
            faithfulness=faithfulness(dense["loss"], empty["loss"], masked["loss"]),
            faithfulness_se=measured.faithfulness_se,
            kl_recovered=kl_recovered(masked["kl"], empty["kl"]),
            kl_recovered_se=measured.kl_recovered_se,
            units=len(frequency),
            unanimous_units=int((frequency == 1).sum()),
            mean_frequency=float(frequency.mean()),
        )

    def _trials(self, subsets: int) -> tuple[Trials, int]:
        """Trials on as many evaluation rows as the budget allows, and how many kept units can be tried."""
        data = self.prepared.data.evaluation
        length, seeds = data.length, len(self.runs)
        # Each run also measures four models on all evaluation data.
        seen = sum(run.result.cost.tokens for run in self.runs) + 4 * seeds * data.size
        sequences = self.settings.budget * seen / length
        masks = subsets + (int(self.keep.sum()) if self.settings.necessity else 0)
        count = max(FEWEST_ROWS, min(int(sequences / max(masks, 1)), self.settings.tokens // length))
        chosen = data[data.some(count)]
        affordable = int(sequences / len(chosen))
        most = max(1, affordable - subsets, affordable // 2)
        evaluator = Evaluator(
            self.prepared.masked, chosen, self.ablation, self.batch_size, on_sequences=self.progress.update
        )
        return Trials(evaluator, self.units, self.keep), most

    def _test_necessity(self, trials: Trials, most: int, generator: torch.Generator) -> NecessityInfo | None:
        kept = int(self.keep.sum())
        if not self.settings.necessity or not kept:
            return None
        log.info("removing each of %d kept units in turn", min(kept, most))
        started = time.perf_counter()
        with self.progress as progress:
            progress.start(len(trials.evaluator.batch), "removing units", "sequence")
            self._necessity = measure_necessity(trials, most, generator)
        found, seconds = self._necessity, time.perf_counter() - started
        tokens = (1 + len(found.units)) * trials.tokens
        self.parts.append(CostPart(name="necessity", seconds=seconds, tokens=tokens))
        return found.info(trials.tokens, kept, seconds, trials.positions)

    def _test_inertness(
        self, trials: Trials, counts: Sequence[int], generator: torch.Generator
    ) -> InertnessInfo | None:
        if not counts:
            return None
        log.info("adding back, and removing, random subsets of %s units", ", ".join(map(str, counts)))
        started = time.perf_counter()
        with self.progress as progress:
            progress.start(len(trials.evaluator.batch), "random subsets", "sequence")
            found = measure_inertness(trials, counts, self.settings.subset_draws, generator)
        found.seconds = time.perf_counter() - started
        tokens = (1 + 2 * len(counts) * found.draws) * trials.tokens
        self.parts.append(CostPart(name="random subsets", seconds=found.seconds, tokens=tokens))
        return found


def _iou_of(agreement: Agreement) -> SeedAgreement:
    iou, chance = agreement.iou, agreement.chance
    return SeedAgreement(
        mean=None if iou is None else iou.mean,
        min=None if iou is None else iou.low,
        max=None if iou is None else iou.high,
        chance=None if chance is None else chance.mean,
    )


def _single_masks(runs: Sequence[RunFiles]) -> SingleMasks:
    """What each seed's own mask does on evaluation data."""
    metrics = [run.result.metrics for run in runs]
    measured = [measured_by(run) for run in runs]
    kl, loss = [model.masked.kl for model in metrics], [model.masked.loss for model in metrics]
    spread = Spread.of(kl)
    return SingleMasks.model_validate(
        {
            "kl": kl,
            "kl_se": [model.masked.kl_se for model in metrics],
            "kl_mean": None if spread is None else spread.mean,
            "kl_sd": None if spread is None else spread.sd,
            "loss": loss,
            "loss_se": [model.masked.loss_se for model in metrics],
            "faithfulness": [run.result.faithfulness for run in runs],
            "faithfulness_se": [run.result.faithfulness_se for run in runs],
            "kl_recovered": [kl_recovered(model.masked.kl, model.empty.kl) for model in metrics],
            "kl_recovered_se": [None if one is None else one.kl_recovered_se for one in measured],
        }
    )
