"""The same method from several seeds: a run for each, and one for what they agree on."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from mechint.analysis.assessment import Assessment, null_record
from mechint.analysis.consensus import Selections
from mechint.analysis.describing import (
    Record,
    describe_inputs,
    describe_mask,
    describe_method,
    describe_model,
    describe_outcome,
    end_record,
    settings_without_effect,
    training_of_all,
)
from mechint.analysis.permuted import permuted_weights
from mechint.analysis.preparation import Preparation, Prepared
from mechint.analysis.single import Analysis, Attempt
from mechint.analysis.stability import Stability
from mechint.errors import UserError
from mechint.loggers import LoggerGroup
from mechint.masking import masks_by_layer
from mechint.methods.method import importance
from mechint.results import Result, RunFiles, save_masks
from mechint.results.evidence import save_evidence
from mechint.runtime.files import plain
from mechint.runtime.seeds import seed_everything

log = logging.getLogger(__name__)

MOST_SEEDS = 1000


@dataclass(kw_only=True)
class SeedStudy(Analysis):
    """An analysis from the seeds seed, seed + 1, ...; for a single seed it is that analysis.

    A seed decides which calibration sequences are drawn and their order, and every random draw of the method; the
    evaluation data are the same for all. Every seed's run is an ordinary run in seed_<n>/. The directory above holds
    the consensus mask (the units most often selected, ties by mean importance rank, as many as each run keeps) as a
    run of its own, and what `stability` tests on it.
    """

    seeds: int = 1
    stability: Stability = field(default_factory=Stability)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise UserError(
                f"seeds={self.seeds} must lie between 1 and {MOST_SEEDS}; it is how many seeds are run"
            )

    def run(
        self,
        output_dir: Path,
        config: Record,
        group: str | None = None,
        bar: bool | None = None,
        resume: bool = True,
        preparation: Preparation | None = None,
    ) -> Record:
        """As Analysis.run; with several seeds, after a run for each of them."""
        if self.seeds == 1 and self.stability != Stability():
            log.warning("stability.* has no effect: it tests what several seeds agree on, and seeds=1")
        if self.seeds > 1:
            self._group, self._bar, self._resume = group or output_dir.name, bar, resume
            self._singles = [self._single(self.seed + number) for number in range(self.seeds)]
        return super().run(output_dir, config, group, bar, resume, preparation)

    def _work(self, attempt: Attempt, preparation: Preparation) -> None:
        if self.seeds == 1:
            super()._work(attempt, preparation)
            return
        started, record, output_dir = time.perf_counter(), attempt.record, attempt.output_dir
        runs = self._run_seeds(output_dir, record["config"], preparation)
        prepared = preparation(self.loader, self.checkpoint, self.device, self.dtype, self.dataset, self.seed)
        masked = prepared.masked
        self.method.prepare(masked, self.target_sparsity, seed_everything(self.seed))  # for its units
        units, pools = self.method.units, self.method.pools
        describe_inputs(record, prepared.checkpoint, prepared.data)
        describe_model(record, masked)
        describe_method(record, self.recipe)
        record["notes"] += settings_without_effect(self.method, masked, self.trainer)

        selections = Selections.of(units, [run.masks for run in runs])
        scores = selections.scores(pools)
        keep, importance_ = pools.select(scores), importance(scores)
        kept = units.to_channels(keep)
        calibration = prepared.data.calibration
        ablation = self.trainer.fit(lambda size: self.recipe.ablation.fit(masked, calibration, size))
        metrics = self.trainer.fit(lambda size: prepared.measure(kept, ablation, size))
        describe_mask(record, units, self.target_sparsity, keep, importance_)
        describe_outcome(record, metrics, training_of_all([run.result.as_json() for run in runs]))

        batch_size = self.trainer.fit.size
        assessment = Assessment(self.stability, prepared, units, selections, keep, runs, batch_size, ablation)
        record["stability"] = assessment.record(metrics, self.seed)
        if self.stability.null_control:
            record["stability"]["null"] = self._null_control(prepared, attempt)
        masks = masks_by_layer(units.space, kept, units.to_channels(importance_))
        record["cost"] |= {"total_seconds": time.perf_counter() - started, "threads": torch.get_num_threads()}
        identity = {"checkpoint_sha256": prepared.checkpoint.sha256}
        files = [
            *save_masks(masks, output_dir, identity),
            save_evidence(assessment.evidence, output_dir, identity),
        ]
        end_record(record, "done")
        run = RunFiles(output_dir, Result.parse(plain(record)), masks, [], assessment.evidence)
        drawn = self.visualizer.draw_if_room(run)
        record["notes"] = run.result.notes
        attempt.logger.summary(
            {"stability": {name: record["stability"][name] for name in ("iou", "consensus")}}
        )
        self._report(record, attempt.logger, files, drawn)

    def _single(self, seed: int) -> Analysis:
        """The analysis of one seed, with objects of its own where they change or hold something open."""
        shared = {item.name: getattr(self, item.name) for item in fields(Analysis)}
        own = {"seed": seed, "recipe": copy.deepcopy(self.recipe), "loggers": copy.deepcopy(self.loggers)}
        return Analysis(**{**shared, **own})

    def _run_seeds(self, output_dir: Path, config: Record, preparation: Preparation) -> list[RunFiles]:
        """An ordinary run for every seed, unless it is done already."""
        runs = []
        for number, single in enumerate(self._singles, start=1):
            directory = output_dir / f"seed_{single.seed}"
            log.info("seed %d, run %d of %d: %s", single.seed, number, self.seeds, directory)
            told = {**config, "seed": single.seed, "seeds": 1}
            if "output_dir" in config:
                told["output_dir"] = str(directory)
            single.run(directory, told, self._group, self._bar, self._resume, preparation)
            runs.append(RunFiles.read(directory))
        return runs

    def _null_control(self, prepared: Prepared, attempt: Attempt) -> Record:
        """The same method at the same settings on the model with permuted weights, from the first seed."""
        log.info("null control: seed %d once more, on the model with permuted weights", self.seed)
        masked = prepared.masked
        control = copy.copy(self)
        control.recipe = copy.deepcopy(self.recipe)
        with permuted_weights(masked.model, self.seed) as matrices:
            generator = seed_everything(self.seed)
            training = control._learn(
                masked, prepared.data, generator, replace(attempt, logger=LoggerGroup())
            )
            keep = control.method.pools.select(training.scores.cpu())
            kept = control.method.units.to_channels(keep)
            permuted = Prepared(prepared.checkpoint, masked, prepared.data)
            metrics = self.trainer.fit(lambda size: permuted.measure(kept, control.recipe.ablation, size))
        return null_record(metrics, self.seed, matrices, training)
