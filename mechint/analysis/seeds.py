"""The same method from several seeds: a run for each, and one for what they agree on."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mechint.analysis.attempt import (
    Attempt,
    Outcome,
    RunOptions,
    attempt_run,
    child_config,
)
from mechint.analysis.costs import add_part, total_cost
from mechint.analysis.describing import Record, basis_info
from mechint.analysis.null import measure_null
from mechint.analysis.preparation import Prepared
from mechint.analysis.proofs import MISSING_NULL_OF_SEEDS, subspace_agreement
from mechint.analysis.single import Analysis
from mechint.analysis.stability import Assessment, Selections, Stability
from mechint.errors import UserError
from mechint.masking.masks import flat_keep
from mechint.methods.method import importance
from mechint.results import Result, RunFiles
from mechint.results.circuit import add_seeds
from mechint.results.mask_files import load_basis
from mechint.results.result import Cost, Proofs
from mechint.runtime.seeds import deterministic, seed_everything

log = logging.getLogger(__name__)

MOST_SEEDS = 1000


OWN_DIRECTIONS = (
    "every seed learns directions of its own, all from one start: overlap, selection frequency and consensus compare "
    "them by their place in a head, and the consensus is measured in the directions of the first seed; how far the "
    "seeds keep the same subspaces stands with what the basis has to show"
)


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
                f"seeds={self.seeds} must lie between 1 and {MOST_SEEDS}; it is the number of seeds"
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
        for single in singles:
            single.recipe.basis.proofs = False  # once for all seeds, here
        work = partial(self._work, singles)
        return attempt_run(output_dir, config, first.inputs, first.outputs, options or RunOptions(), work)

    def _work(self, singles: Sequence[Analysis], attempt: Attempt) -> None:
        first, trainer, recipe = self.analysis, self.analysis.trainer, self.analysis.recipe
        fresh = replace(first, recipe=copy.deepcopy(recipe))  # nothing of this run is in it
        with deterministic(trainer.deterministic):
            runs = self._run_seeds(singles, attempt)
            prepared = attempt.options.preparation(first.inputs, first.seed)
            # The consensus is measured in the basis of the first seed's run.
            basis = load_basis(prepared.masked.space, runs[0].directory)
            prepared = first.prepare(prepared, seed_everything(first.seed), basis)
            units, pools = first.method.units, first.method.pools
            attempt.describe(prepared, recipe, trainer, first.target_sparsity)
            if recipe.basis.learned:
                attempt.result.add_notes(OWN_DIRECTIONS)

            selections = Selections.of(units, [run.masks for run in runs])
            scores = selections.scores(pools)
            keep = pools.select(scores)
            ablation = first.fit_ablation(prepared, keep) if recipe.ablation.learned else recipe.ablation
            measured = attempt.measure(prepared, units.to_channels(keep), ablation, trainer, recipe.objective)
            cost = total_cost(runs)
            attempt.result.rival = first.rival_of_mask(keep)
            first.add_random_masks(attempt.result, prepared, keep, cost)
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
            stability = assessment.info(measured, first.seed)
            cost.parts = [*cost.parts, *assessment.parts]
            attempt.result.proofs = self._prove(prepared, keep, runs, cost, attempt)
            if self.stability.null_control:
                started, count = time.perf_counter(), first.controls.permutations
                recovered = stability.single.kl_recovered
                stability.null = measure_null(fresh, prepared, count, recovered, attempt)
                add_part(cost, "permuted models", started, stability.null.tokens)
            attempt.result.stability = stability
        attempt.result.binarization_gap = None
        evidence, target, worth = assessment.evidence, first.target_sparsity, importance(scores)
        basis = prepared.masked.basis
        attempt.result.basis = basis_info(basis, units.space, recipe)
        attempt.result.circuit = first.study_circuit(prepared, keep, scores, cost, attempt.directory, "rank")
        if attempt.result.circuit is not None:
            add_seeds(attempt.result.circuit, [run.result.circuit for run in runs])
        attempt.finish(Outcome(units, target, keep, worth, measured, cost, basis, evidence=evidence))

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

    def _prove(
        self,
        prepared: Prepared,
        keep: Tensor,
        runs: Sequence[RunFiles],
        cost: Cost,
        attempt: Attempt,
    ) -> Proofs | None:
        """What several seeds in a basis have to show; None for channels. keep: bool [U], of the consensus mask."""
        if prepared.masked.basis is None:
            return None
        first, space = self.analysis, prepared.masked.space
        proofs = first.prove_mask(prepared, keep, first.second_text(prepared), cost, attempt)
        started = time.perf_counter()
        bases = [load_basis(space, run.directory) for run in runs]
        known = [basis for basis in bases if basis is not None]
        keeps = [flat_keep(space, run.masks) for run in runs]
        generator = torch.Generator().manual_seed(first.seed)
        proofs.subspaces = subspace_agreement(space, known, keeps, generator)
        add_part(cost, "subspaces", started, 0)
        if not self.stability.null_control:
            proofs.missing = [MISSING_NULL_OF_SEEDS.format(first.controls.permutations), *proofs.missing]
        return proofs
