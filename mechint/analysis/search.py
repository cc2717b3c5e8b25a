"""The smallest mask that is faithful enough, or close enough to the dense model."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mechint.analysis.attempt import Attempt, Outcome, RunOptions, attempt_run, child_config
from mechint.analysis.costs import total_cost
from mechint.analysis.describing import Record
from mechint.analysis.preparation import Prepared
from mechint.analysis.single import Analysis
from mechint.analysis.targets import point, proofs_of_several
from mechint.errors import UserError
from mechint.masking.masks import flat_importance, flat_keep
from mechint.masking.sites import in_basis
from mechint.metrics.evaluation import Evaluator, Measured, faithfulness, standard_error
from mechint.metrics.metric import KL, NLL
from mechint.reporting import Visualizer
from mechint.results import Result, RunFiles
from mechint.results.mask_files import load_basis
from mechint.results.result import TargetInfo
from mechint.results.sequences import measured_by

log = logging.getLogger(__name__)

Kind = Literal["faithfulness", "kl"]

# What all masks of a search together may cost, in steps of a single run, and each of them.
COST, COST_OF_ONE = 2.5, 0.4

# The first masks keep these shares of the units, until one fails.
LADDER = (0.5, 0.2, 0.08, 0.03)

# Of the calibration sequences, kept out of learning to choose among masks.
SELECTION = 1 / 8

# Between masks whose counts differ by less than this share of all units nothing more is tried.
CLOSE = 0.01


@dataclass(kw_only=True)
class TargetSearch:
    """Masks of fewer and fewer units, each inside the one before, until one fails the target; then masks between the
    smallest that reaches it and the largest that does not.

    Each mask is an ordinary run in search_<share kept>/ with 0.4 of the steps of a single run; together they take at
    most 2.5 times as many. Which of them reach the target is decided on calibration sequences that none of them
    learned on. The directory above holds the smallest of these, and says with a 95 % interval what it reaches on
    evaluation data, which decide nothing.

    analysis: its target sparsity does not count. kind, value: reach at least this faithfulness, or at most this KL.
    """

    analysis: Analysis
    kind: Kind
    value: float

    def __post_init__(self) -> None:
        if self.kind == "faithfulness" and not 0 < self.value < 1:
            raise UserError(f"target_faithfulness={self.value} must lie between 0 and 1, e.g. 0.9")
        if self.kind == "kl" and not 0 < self.value < math.inf:
            raise UserError(f"target_kl={self.value} must be positive; it is in nats per token, e.g. 0.1")

    def unseen(self) -> TargetSearch:
        """The same for a process that only helps another: nothing is logged or drawn."""
        return replace(self, analysis=self.analysis.unseen())

    def run(self, output_dir: Path, config: Record, options: RunOptions | None = None) -> Result:
        """As Analysis.run, after a run for each mask that is tried."""
        given = self.analysis
        fresh = given.another()  # now, before any logger has something open
        fresh.recipe.basis.proofs = False  # of one target only
        work = partial(self._work, fresh)
        return attempt_run(output_dir, config, given.inputs, given.outputs, options or RunOptions(), work)

    def _work(self, fresh: Analysis, attempt: Attempt) -> None:
        given = self.analysis
        prepared = attempt.options.preparation(given.inputs, given.seed)
        held_out = max(1, round(SELECTION * len(prepared.data.calibration)))
        if held_out + 2 > len(prepared.data.calibration):
            raise UserError("a search needs more calibration sequences; raise dataset.calibration_tokens")
        given.method.prepare(prepared.masked, 0.5, torch.Generator())
        total = given.method.units.count
        runs: list[RunFiles] = []
        passed: RunFiles | None = None  # the smallest mask that reaches the target
        failed = 0  # units of the largest that does not
        for _ in range(int(COST / COST_OF_ONE)):
            above = total if passed is None else passed.result.sparsity.kept
            kept = next_count(total, above, failed)
            if kept is None:
                break
            run = self._run_one(fresh, kept / total, held_out, passed, attempt)
            runs.append(run)
            reached = self._reached(prepared, run, held_out)
            log.info("%d units: %s %.4g on the selection data", kept, self.kind, reached)
            if self._good(reached):
                passed = run
            else:
                failed = kept
        self._finish(attempt, prepared, passed, runs)

    def _run_one(
        self, fresh: Analysis, density: float, held_out: int, passed: RunFiles | None, attempt: Attempt
    ) -> RunFiles:
        """An ordinary run for a mask of this share of the units, inside the last one that reached the target."""
        recipe = copy.deepcopy(fresh.recipe)
        recipe.steps = max(1, round(COST_OF_ONE * recipe.steps))
        recipe.method.finishing_trials = math.ceil(COST_OF_ONE * recipe.method.finishing_trials)
        sparsity = 1 - density
        # Not drawn: most of them were only tried, and the directory above shows the one that was chosen.
        outputs = replace(fresh.outputs.copy(), visualizer=Visualizer([]))
        single = fresh.another(
            target_sparsity=sparsity,
            recipe=recipe,
            within=passed,
            held_out=held_out,
            outputs=outputs,
            circuit=None,
        )
        directory = attempt.directory / f"search_{density:.4f}"
        config, options = attempt.result.config, attempt.options
        changes: Record = {"target_sparsity": sparsity, "steps": recipe.steps, "held_out": held_out}
        changes["nested_in"] = [] if passed is None else [passed.directory.name]
        changes |= {"target_faithfulness": None, "target_kl": None}
        if isinstance(config.get("mask"), dict):
            changes["mask"] = {**config["mask"], "finishing_trials": recipe.method.finishing_trials}
        log.info("keeping %.2f %% of the units: %s", 100 * density, directory)
        single.run(
            directory,
            child_config(config, directory, **changes),
            replace(options, group=options.group or attempt.directory.name),
        )
        return RunFiles.read(directory)

    def _reached(self, prepared: Prepared, run: RunFiles, held_out: int) -> float:
        """What a run's mask reaches on the calibration sequences that no mask learned on."""
        space, calibration = prepared.masked.space, prepared.data.calibration
        view = in_basis(prepared.masked, load_basis(space, run.directory))
        trainer, recipe = self.analysis.trainer, self.analysis.recipe
        chosen, learned_on = (
            calibration[len(calibration) - held_out :],
            calibration[: len(calibration) - held_out],
        )
        ablation = trainer.fit(lambda size: recipe.ablation.fit(view, learned_on, size))
        keep = flat_keep(space, run.masks)
        values = trainer.fit(
            lambda size: Evaluator(view, chosen, ablation, size)(
                [None, torch.zeros_like(keep), keep], [NLL, KL]
            )
        )
        positions = chosen.positions
        means = (values * positions).sum(-1) / positions.sum()
        if self.kind == "kl":
            return float(means[2, 1])
        found = faithfulness(*means[:, 0].tolist())
        if found is None:
            raise UserError(
                "the dense and the empty model are equally good at this text, so that nothing is faithful or not; "
                "use target_kl"
            )
        return found

    def _good(self, reached: float) -> bool:
        return reached >= self.value if self.kind == "faithfulness" else reached <= self.value

    def _finish(
        self, attempt: Attempt, prepared: Prepared, passed: RunFiles | None, runs: Sequence[RunFiles]
    ) -> None:
        """The smallest mask that reaches the target as a run of its own; the largest where none does."""
        best = passed or max(runs, key=lambda run: run.result.sparsity.kept)
        given, result = self.analysis, attempt.result
        given.method.prepare(prepared.masked, 0.5, torch.Generator())  # for its units
        units, measured = given.method.units, measured_by(best)
        assert measured is not None, "runs of this version keep their sequences"
        attempt.describe(prepared, given.recipe, given.trainer, best.result.sparsity.target or 0.0)
        if passed is None:
            result.add_notes(
                f"no mask reaches {self.kind} {self.value:g} on the selection data; this is the largest mask "
                "tried"
            )
        result.notes = list(dict.fromkeys([*result.notes, *best.result.notes]))
        result.nested = [point(run) for run in sorted(runs, key=lambda run: -run.result.sparsity.kept)]
        result.basis, result.random_masks = best.result.basis, best.result.random_masks
        result.proofs = proofs_of_several(best.result.proofs, given.recipe)
        result.finishing, result.binarization_gap = best.result.finishing, best.result.binarization_gap
        samples = self._samples(measured)
        result.target = TargetInfo(
            kind=self.kind,
            value=self.value,
            achieved=self._achieved(best),
            achieved_se=standard_error(samples),
            interval=_interval(samples),
            units=best.result.sparsity.kept,
            runs=len(runs),
        )
        keep = units.of_channels(flat_keep(units.space, best.masks))
        worth = units.of_channels(flat_importance(units.space, best.masks))
        cost, basis = total_cost(runs), load_basis(units.space, best.directory)
        target = best.result.sparsity.target or 0.0
        result.circuit = given.study_saved(prepared, basis, keep, worth, cost, attempt.directory)
        attempt.finish(Outcome(units, target, keep, worth, measured, cost, basis, best.history))

    def _achieved(self, run: RunFiles) -> float | None:
        return run.result.faithfulness if self.kind == "faithfulness" else run.result.metrics.masked.kl

    def _samples(self, measured: Measured) -> Tensor:
        """What bootstrap samples of the evaluation sequences say of it, [draws]."""
        if self.kind == "kl":
            return measured.resampled("kl")[:, 2]
        dense, empty, masked, _ = measured.resampled("loss").unbind(1)
        return (empty - masked) / (empty - dense)


def _interval(samples: Tensor) -> list[float] | None:
    """The 95 % interval of bootstrap samples [draws]; None where some have no number."""
    if not bool(samples.isfinite().all()):
        return None
    ends = torch.quantile(samples, torch.tensor([0.025, 0.975], dtype=samples.dtype))
    return [float(end) for end in ends]


def next_count(total: int, above: int, failed: int) -> int | None:
    """How many units to try next, between the largest count that failed (0: none) and the smallest that did not.

    None where these are close to each other.
    """
    if not failed:
        below = [count for count in (max(1, round(share * total)) for share in LADDER) if count < above]
        if below:
            return below[0]
        return max(1, above // 2) if above > 1 else None
    between = round(math.sqrt(above * failed))
    close = above - failed <= max(1, round(CLOSE * total))
    return None if close or not failed < between < above else between
