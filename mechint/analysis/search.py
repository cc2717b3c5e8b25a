"""The smallest mask that is faithful enough, or close enough to the dense model."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mechint.analysis.attempt import Attempt, Outcome, RunOptions, attempt_run, child_config
from mechint.analysis.costs import total_cost
from mechint.analysis.describing import Record
from mechint.analysis.goals import Goal, Kind
from mechint.analysis.preparation import Prepared
from mechint.analysis.saved import fitted
from mechint.analysis.single import Analysis
from mechint.analysis.targets import point, proofs_of_several
from mechint.circuits.scores import interval_of
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking.masks import flat_importance, flat_keep
from mechint.masking.sites import in_basis
from mechint.metrics.evaluation import Evaluator, Measured, over_positions, resampled, standard_error
from mechint.metrics.metric import KL, NLL, Metric
from mechint.reporting import Visualizer
from mechint.results import Result, RunFiles
from mechint.results.mask_files import load_basis
from mechint.results.result import TargetInfo
from mechint.results.sequences import measured_by

log = logging.getLogger(__name__)

# What all masks of a search together may cost, in steps of a single run, and each of them.
COST, COST_OF_ONE = 2.5, 0.4

# The first masks keep these shares of the units, until one fails.
LADDER = (0.5, 0.2, 0.08, 0.03)

# Of the calibration sequences, kept out of learning to choose among masks; a prompt has a single answer.
SELECTION, SELECTION_OF_PROMPTS = 1 / 8, 1 / 4

# Between masks whose counts differ by less than this share of all units nothing more is tried.
CLOSE = 0.01


@dataclass(frozen=True)
class Tried:
    """A mask that was tried, its units, and its quality on the selection data."""

    kept: int
    reached: float
    run: RunFiles


@dataclass(kw_only=True)
class TargetSearch:
    """Masks of fewer and fewer units, each inside the one before, until one falls short of the target; then masks
    between the smallest that does not fall short and the largest that does.

    Each mask is an ordinary run in search_<share kept>/ with 0.4 of the steps of a single run; together they take at
    most 2.5 times as many. Which of them reach the target is decided on calibration sequences that none of them
    learned on. The directory above holds the smallest of these, and says with a 95 % interval what it reaches on
    evaluation data, which decide nothing.

    analysis: its target sparsity does not count. kind, value: reach at least this faithfulness, or at most this KL. On
    a task it is the faithfulness of the logit difference, and a mask that exceeds 1 by more than 1 - value does not
    count either, though smaller ones inside it may.
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
        on_task = prepared.data.task is not None
        goal = Goal.of_search(self.kind, self.value, on_task)
        share = SELECTION_OF_PROMPTS if on_task else SELECTION
        held_out = max(1, round(share * len(prepared.data.calibration)))
        if held_out + 2 > len(prepared.data.calibration):
            what = "calibration_prompts" if on_task else "calibration_tokens"
            raise UserError(f"a search needs more calibration sequences; raise dataset.{what}")
        given.method.prepare(prepared.masked, 0.5, torch.Generator())
        total = given.method.units.count
        selection = prepared.data.calibration[-held_out:]
        self._check(prepared, selection, goal, held_out)

        def attempt_one(kept: int, within: RunFiles | None) -> Tried:
            run = self._run_one(fresh, kept / total, held_out, within, attempt)
            values = self._values(prepared, run, selection, goal.metric, held_out)
            reached = goal.reached(over_positions(values, selection.positions))
            log.info("%d units: %s %.4g on the selection data", kept, self.kind, reached)
            return Tried(kept, reached, run)

        tried = descend(total, goal, attempt_one)
        self._finish(attempt, prepared, goal, tried, held_out)

    def _check(self, prepared: Prepared, selection: Batch, goal: Goal, held_out: int) -> None:
        """Raises UserError where the dense and the empty model do as well, so that nothing is faithful or not."""
        if self.kind == "kl":
            return
        masked, trainer, calibration = prepared.masked, self.analysis.trainer, prepared.data.calibration
        learned_on = calibration[: len(calibration) - held_out]
        ablation = trainer.fit(lambda size: self.analysis.recipe.ablation.fit(masked, learned_on, size))
        gates = [None, torch.zeros(masked.space.num_channels, dtype=torch.bool)]
        values = trainer.fit(lambda size: Evaluator(masked, selection, ablation, size)(gates, [goal.metric]))
        draws = resampled(values[:, 0], selection.positions, selection.families)  # [draws, models]
        low, high = interval_of(draws[:, 0] - draws[:, 1]) or (0.0, 0.0)
        if low <= 0 <= high:
            raise UserError(
                f"the dense and the empty model cannot be told apart on the {held_out} calibration sequences that "
                f"masks are chosen by (95 % interval of their difference {low:.3g} to {high:.3g}), so nothing is "
                "faithful or not; use target_kl, or more calibration data"
            )

    def _run_one(
        self, fresh: Analysis, density: float, held_out: int, within: RunFiles | None, attempt: Attempt
    ) -> RunFiles:
        """An ordinary run for a mask of this share of the units, inside the last one that did not fall short."""
        recipe = copy.deepcopy(fresh.recipe)
        recipe.steps = max(1, round(COST_OF_ONE * recipe.steps))
        recipe.method.finishing_trials = math.ceil(COST_OF_ONE * recipe.method.finishing_trials)
        sparsity = 1 - density
        # Not drawn: most of them were only tried, and the directory above shows the one that was chosen.
        outputs = replace(fresh.outputs.copy(), visualizer=Visualizer([]))
        single = fresh.another(
            target_sparsity=sparsity,
            recipe=recipe,
            within=within,
            held_out=held_out,
            outputs=outputs,
            circuit=None,
        )
        directory = attempt.directory / f"search_{density:.4f}"
        config, options = attempt.result.config, attempt.options
        changes: Record = {"target_sparsity": sparsity, "steps": recipe.steps, "held_out": held_out}
        changes["nested_in"] = [] if within is None else [within.directory.name]
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

    def _values(
        self, prepared: Prepared, run: RunFiles, batch: Batch, metric: Metric, held_out: int
    ) -> Tensor:
        """A metric of the dense, the empty and a run's masked model on sequences, double [3, M]."""
        space, trainer, calibration = prepared.masked.space, self.analysis.trainer, prepared.data.calibration
        view = in_basis(prepared.masked, load_basis(space, run.directory))
        learned_on = calibration[: len(calibration) - held_out]
        keep = flat_keep(space, run.masks)
        ablation = trainer.fit(
            lambda size: fitted(self.analysis.recipe.ablation, view, learned_on, keep, size)
        )
        gates = [None, torch.zeros_like(keep), keep]
        return trainer.fit(lambda size: Evaluator(view, batch, ablation, size)(gates, [metric])[:, 0])

    def _finish(
        self, attempt: Attempt, prepared: Prepared, goal: Goal, tried: Sequence[Tried], held_out: int
    ) -> None:
        """The smallest mask that reaches the target as a run of its own; the one that comes closest where none does."""
        chosen = min(tried, key=lambda one: (goal.distance(one.reached), one.kept))
        best, runs = chosen.run, [one.run for one in tried]
        given, result = replace(self.analysis, held_out=held_out), attempt.result
        given.method.prepare(prepared.masked, 0.5, torch.Generator())  # for its units
        units, measured = given.method.units, measured_by(best)
        assert measured is not None, "runs of this version keep their sequences"
        attempt.describe(prepared, given.recipe, given.trainer, best.result.sparsity.target or 0.0)
        if goal.distance(chosen.reached):
            result.add_notes(
                f"no mask reaches {goal.asked.title} on the selection data; this is the one tried that comes closest"
            )
        result.notes = list(dict.fromkeys([*result.notes, *best.result.notes]))
        result.nested = [
            point(one.run).model_copy(update={"selected": one.reached})
            for one in sorted(tried, key=lambda one: -one.kept)
        ]
        keep = units.of_channels(flat_keep(units.space, best.masks))
        result.basis, result.random_masks = best.result.basis, best.result.random_masks
        result.proofs = proofs_of_several(best.result.proofs, given.recipe)
        result.rival = given.rival_of_mask(keep)
        result.finishing, result.binarization_gap = best.result.finishing, best.result.binarization_gap
        result.target = self._target(prepared, goal, chosen, measured, held_out)
        result.target.runs = len(runs)
        worth = units.of_channels(flat_importance(units.space, best.masks))
        cost, basis = total_cost(runs), load_basis(units.space, best.directory)
        target = best.result.sparsity.target or 0.0
        result.circuit = given.study_saved(prepared, basis, keep, worth, cost, attempt.directory)
        attempt.finish(Outcome(units, target, keep, worth, measured, cost, basis, best.history))

    def _target(
        self, prepared: Prepared, goal: Goal, chosen: Tried, measured: Measured, held_out: int
    ) -> TargetInfo:
        """What was asked for, and what the chosen mask reaches on evaluation data."""
        name = {NLL.name: "loss", KL.name: "kl"}.get(goal.metric.name)
        if name is not None:
            values, positions, documents = (
                measured.sequences[name][:3],
                measured.positions,
                measured.documents,
            )
        else:  # on the prompts that the circuit is measured on
            study = self.analysis.circuit
            prompts = prepared.data.evaluation[: None if study is None else study.prompts]
            values = self._values(prepared, chosen.run, prompts, goal.metric, held_out)
            positions, documents = prompts.positions, prompts.families
        samples = goal.quality(resampled(values, positions, documents))
        found = {
            "achieved": goal.reached(over_positions(values, positions)),
            "achieved_se": standard_error(samples),
            "interval": interval_of(samples),
            "units": chosen.kept,
            "selected": chosen.reached,
            "selection_sequences": held_out,
            "sequences": len(positions),
        }
        return goal.asked.model_copy(update=found)


def descend(total: int, goal: Goal, attempt_one: Callable[[int, RunFiles | None], Tried]) -> list[Tried]:
    """Every mask that a search tries, in this order.

    attempt_one: learns a mask of so many units, inside the run that it is given.
    """
    tried: list[Tried] = []
    enough: Tried | None = None  # the smallest mask that does not fall short
    failed = 0  # units of the largest that does
    for _ in range(int(COST / COST_OF_ONE)):
        kept = next_count(total, total if enough is None else enough.kept, failed)
        if kept is None:
            break
        one = attempt_one(kept, None if enough is None else enough.run)
        tried.append(one)
        if goal.falls_short(one.reached):
            failed = kept
        else:
            enough = one
    return tried


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
