"""The same method from several seeds: a run for each, and one for what they agree on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from mechint.analysis.attempt import (
    Attempt,
    Outcome,
    RunOptions,
    attempt_run,
    child_config,
)
from mechint.analysis.describing import Record, basis_info, total_cost
from mechint.analysis.preparation import Prepared
from mechint.analysis.single import Analysis, measure_with_progress
from mechint.analysis.stability import (
    Assessment,
    Selections,
    Stability,
    null_control,
    permuted_weights,
)
from mechint.errors import UserError
from mechint.loggers import LoggerGroup
from mechint.masking.sites import in_basis
from mechint.methods.method import importance
from mechint.results import Result, RunFiles
from mechint.results.mask_files import load_basis
from mechint.results.result import NullControl
from mechint.runtime.seeds import deterministic, seed_everything

log = logging.getLogger(__name__)

MOST_SEEDS = 1000


@dataclass(kw_only=True)
class SeedStudy:
    """An analysis from the seeds seed, seed + 1, ..., two or more.

    A seed decides which calibration sequences are drawn and their order, and every random draw of the method; the
    evaluation data are the same for all. Every seed's run is an ordinary run in seed_<n>/. The directory above holds
    the consensus mask (the units most often selected, ties by mean importance rank, as many as each run keeps) as a
    run of its own, and what `stability` tests on it.

    analysis: of the first seed.
    """

    analysis: Analysis
    seeds: int
    stability: Stability = field(default_factory=Stability)

    def __post_init__(self) -> None:
        if not 2 <= self.seeds <= MOST_SEEDS:
            raise UserError(
                f"seeds={self.seeds} must lie between 1 and {MOST_SEEDS}; it is how many seeds are run"
            )

    def unseen(self) -> SeedStudy:
        """The same for a process that only helps another: nothing is logged or drawn."""
        return replace(self, analysis=self.analysis.unseen())

    def run(self, output_dir: Path, config: Record, options: RunOptions | None = None) -> Result:
        """As Analysis.run, after a run for each seed."""
        first = self.analysis
        # Now, before any logger has something open.
        singles = [
            first.another(seed=first.seed + number, basis_seed=first.seed) for number in range(self.seeds)
        ]
        work = partial(self._work, singles)
        return attempt_run(output_dir, config, first.inputs, first.outputs, options or RunOptions(), work)

    def _work(self, singles: Sequence[Analysis], attempt: Attempt) -> None:
        first, trainer, recipe = self.analysis, self.analysis.trainer, self.analysis.recipe
        with deterministic(trainer.deterministic):
            runs = self._run_seeds(singles, attempt)
            prepared = attempt.options.preparation(first.inputs, first.seed)
            prepared = self._in_first_basis(first.prepare(prepared, seed_everything(first.seed)), runs[0])
            units, pools, ablation = first.method.units, first.method.pools, recipe.ablation
            attempt.describe(prepared, recipe, trainer, first.target_sparsity)

            selections = Selections.of(units, [run.masks for run in runs])
            scores = selections.scores(pools)
            keep = pools.select(scores)
            measured = measure_with_progress(prepared, units.to_channels(keep), ablation, trainer, attempt)
            assessment = Assessment(
                self.stability,
                prepared,
                units,
                selections,
                keep,
                runs,
                trainer.fit.size,
                ablation,
                attempt.progress,
            )
            attempt.result.stability = assessment.info(measured.metrics, first.seed)
            if self.stability.null_control:
                attempt.result.stability.null = self._null_control(prepared, attempt)
        attempt.result.binarization_gap = None
        cost, evidence = total_cost(runs), assessment.evidence
        target, worth = first.target_sparsity, importance(scores)
        basis = prepared.masked.basis
        attempt.result.basis = basis_info(basis, units.space, recipe)
        attempt.finish(Outcome(units, target, keep, worth, measured, cost, basis, evidence=evidence))

    def _in_first_basis(self, prepared: Prepared, run: RunFiles) -> Prepared:
        """The model in the basis of the first seed's run, in which the consensus is measured."""
        basis = load_basis(prepared.masked.space, run.directory)
        if basis is None:
            return prepared
        view, recipe, calibration = (
            in_basis(prepared.masked, basis),
            self.analysis.recipe,
            prepared.data.calibration,
        )
        recipe.ablation = self.analysis.trainer.fit(lambda size: recipe.ablation.fit(view, calibration, size))
        return prepared.seen_in(view)

    def _run_seeds(self, singles: Sequence[Analysis], attempt: Attempt) -> list[RunFiles]:
        """An ordinary run for every seed, unless it is done already."""
        runs = []
        options = replace(attempt.options, group=attempt.options.group or attempt.directory.name)
        for number, single in enumerate(singles, start=1):
            directory = attempt.directory / f"seed_{single.seed}"
            log.info("seed %d, run %d of %d: %s", single.seed, number, self.seeds, directory)
            config = child_config(attempt.result.config, directory, seed=single.seed, seeds=1)
            single.run(directory, config, options)
            runs.append(RunFiles.read(directory))
        return runs

    def _null_control(self, prepared: Prepared, attempt: Attempt) -> NullControl:
        """The same method at the same settings on the model with permuted weights, from the first seed."""
        first = self.analysis
        log.info("null control: seed %d once more, on the model with permuted weights", first.seed)
        control = replace(first, recipe=copy.deepcopy(first.recipe))
        permuted = Prepared(prepared.checkpoint, prepared.masked, prepared.data)
        with permuted_weights(prepared.masked.model, first.seed) as matrices:
            generator = seed_everything(first.seed)
            permuted = control.prepare(permuted, generator)
            training, permuted = control.learn(permuted, generator, replace(attempt, logger=LoggerGroup()))
            keep = control.method.units.to_channels(control.method.pools.select(training.scores.cpu()))
            measured = measure_with_progress(permuted, keep, control.recipe.ablation, first.trainer, attempt)
        return null_control(measured.metrics, first.seed, matrices, training.seconds)
