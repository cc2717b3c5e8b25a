"""Masks for several target sparsities from one run, each inside the one before."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechint.analysis.attempt import Attempt, Outcome, RunOptions, attempt_run, child_config
from mechint.analysis.costs import total_cost
from mechint.analysis.describing import Record
from mechint.analysis.proofs import MISSING_NESTED
from mechint.analysis.single import Analysis
from mechint.errors import UserError
from mechint.learning.recipe import Recipe
from mechint.masking import Units
from mechint.masking.masks import flat_importance, flat_keep
from mechint.methods.method import importance
from mechint.results import Result, RunFiles
from mechint.results.mask_files import load_basis
from mechint.results.result import Metrics, NestedPoint, Proofs
from mechint.results.sequences import measured_by

log = logging.getLogger(__name__)

# What all targets together may cost, as a multiple of a run for one of them.
COST = 1.5

# More targets than this tell nothing more, and each takes a run of its own.
MOST_TARGETS = 100

# Where no target is given.
DEFAULT_SPARSITY = 0.95


@dataclass(kw_only=True)
class NestedTargets:
    """A ladder of analyses: each target's mask is learned among the units that the target before it keeps.

    Every target's run is an ordinary run in sparsity_<target>/. Together they have 1.5 times the steps and finishing
    trials of a run for a single target, the sparser ones more of them. The directory above holds the mask of the
    highest target, and one ranking of all units from which every target's mask can be read: `importance` orders units
    by how many targets keep them, then by the scores of the last run in which they could be kept.

    analysis: of the highest target alone. targets: sparsities, ascending.
    """

    analysis: Analysis
    targets: tuple[float, ...]

    def unseen(self) -> NestedTargets:
        """The same for a process that only helps another: nothing is logged or drawn."""
        return replace(self, analysis=self.analysis.unseen())

    def run(self, output_dir: Path, config: Record, options: RunOptions | None = None) -> Result:
        """As Analysis.run, after a run for each target."""
        highest = self.analysis
        singles = [self._single(number) for number in range(len(self.targets))]
        work = partial(self._work, singles)
        return attempt_run(output_dir, config, highest.inputs, highest.outputs, options or RunOptions(), work)

    def _work(self, singles: Sequence[Analysis], attempt: Attempt) -> None:
        highest, recipe, result = self.analysis, self.analysis.recipe, attempt.result
        runs = self._run_targets(singles, attempt)
        prepared = attempt.options.preparation(highest.inputs, highest.seed)
        highest.method.prepare(prepared.masked, highest.target_sparsity, torch.Generator())  # for its units
        units, last = highest.method.units, runs[-1]
        attempt.describe(prepared, recipe, highest.trainer, highest.target_sparsity)

        ranking = one_ranking(units, runs)
        keep = units.of_channels(flat_keep(units.space, last.masks))
        result.nested = [point(run) for run in runs]
        result.binarization_gap = None
        basis, cost = load_basis(units.space, last.directory), total_cost(runs)
        result.basis, result.random_masks = last.result.basis, last.result.random_masks
        result.circuit = highest.study_saved(prepared, basis, keep, ranking, cost, attempt.directory)
        result.rival = highest.rival_of_mask(keep)
        result.proofs = proofs_of_several(last.result.proofs, recipe)
        measured = measured_by(last)
        assert measured is not None, "runs of this version keep their sequences"
        target, worth = highest.target_sparsity, importance(ranking)
        attempt.finish(Outcome(units, target, keep, worth, measured, cost, basis))

    def _single(self, number: int) -> Analysis:
        """The analysis of one target."""
        recipe = copy.deepcopy(self.analysis.recipe)
        recipe.method.finishing_trials = self._part(number, recipe.method.finishing_trials)
        recipe.basis.proofs = False  # of one target only
        recipe.steps = max(1, self._part(number, recipe.steps))
        return self.analysis.another(target_sparsity=self.targets[number], recipe=recipe, circuit=None)

    def _part(self, number: int, whole: int) -> int:
        """One target's part of steps or trials: for n targets in the ratio n + 1 : n + 2 : ... : 2n."""
        count = len(self.targets)
        return math.floor(COST * whole * (count + 1 + number) / sum(range(count + 1, 2 * count + 1)))

    def _run_targets(self, singles: Sequence[Analysis], attempt: Attempt) -> list[RunFiles]:
        """An ordinary run for every target, unless it is done already."""
        runs: list[RunFiles] = []
        config, given = attempt.result.config, attempt.options
        options = replace(given, group=given.group or attempt.directory.name)
        for number, single in enumerate(singles, start=1):
            target, trials = single.target_sparsity, single.method.finishing_trials
            directory = attempt.directory / directory_of(target)
            log.info("target sparsity %g, run %d of %d: %s", target, number, len(singles), directory)
            changes: Record = {"target_sparsity": target, "steps": single.recipe.steps}
            changes["nested_in"] = list(self.targets[: number - 1])
            if isinstance(config.get("mask"), dict):
                changes["mask"] = {**config["mask"], "finishing_trials": trials}
            single.within = runs[-1] if runs else None
            single.run(directory, child_config(config, directory, **changes), options)
            runs.append(RunFiles.read(directory))
        return runs


def one_ranking(units: Units, runs: Sequence[RunFiles]) -> Tensor:
    """Scores [U], double, that order the units of nested runs, ascending in sparsity, all at once.

    The whole part is how many runs keep a unit, the fraction its importance in the last run in which it could be kept.
    """
    keep = torch.stack([units.of_channels(flat_keep(units.space, run.masks)) for run in runs])
    worth = torch.stack([units.of_channels(flat_importance(units.space, run.masks)) for run in runs])
    assert bool((keep[1:] <= keep[:-1]).all()), "masks are nested"
    depth = keep.sum(0)  # [U]
    last = depth.clamp(max=len(runs) - 1)
    return depth + 0.999 * worth.gather(0, last[None]).squeeze(0).double()


def point(run: RunFiles) -> NestedPoint:
    """What the result of several targets tells of one of them."""
    result, sparsity, metrics = run.result, run.result.sparsity, run.result.metrics
    return NestedPoint(
        directory=run.directory.name,
        target=sparsity.target,
        achieved=sparsity.achieved,
        kept=sparsity.kept,
        total=sparsity.total,
        channels=result.channels.kept,
        metrics=Metrics(masked=metrics.masked, complement=metrics.complement),
        faithfulness=result.faithfulness,
        faithfulness_se=result.faithfulness_se,
        loss_degradation_percent=result.loss_degradation_percent,
        loss_degradation_percent_se=result.loss_degradation_percent_se,
        random_masks=result.random_masks,
    )


def proofs_of_several(best: Proofs | None, recipe: Recipe) -> Proofs | None:
    """What a run for several targets shows of its mask: what the mask's own run does, but for the permuted models."""
    if best is None or not recipe.basis.proofs:
        return best
    return best.model_copy(update={"missing": [MISSING_NESTED, *best.missing]})


def directory_of(target: float) -> str:
    """The directory of one target's run."""
    return f"sparsity_{target:g}"


def parse_targets(value: Any) -> tuple[float, ...]:
    """Target sparsities, ascending, from a number, a list of them, or a range "first:last:step" with both ends.

    None stands for the default.

    Raises UserError for anything else and for a list without or with repeated targets.
    """
    value = DEFAULT_SPARSITY if value is None else value
    wrong = UserError(
        f"target_sparsity={value} is neither a number nor a list or range of them; "
        "use e.g. 0.9, [0.5,0.9] or 0.5:0.9:0.1"
    )
    if isinstance(value, str) and value.count(":") == 2:
        first, last, step = (_number(part, wrong) for part in value.split(":"))
        if not (step > 0 and first <= last):
            raise wrong
        if not (math.isfinite(first + last + step) and (last - first) / step < MOST_TARGETS):
            raise UserError(f"target_sparsity={value} has too many values; use at most {MOST_TARGETS}")
        value = [round(first + step * index, 12) for index in range(int((last - first) / step + 1 + 1e-9))]
    items = value if isinstance(value, (list, tuple)) else [value]
    targets = sorted(_number(item, wrong) for item in items)
    if not targets or len(set(targets)) < len(targets):
        raise wrong
    if len(targets) > MOST_TARGETS or len({directory_of(target) for target in targets}) < len(targets):
        raise UserError(
            f"target_sparsity={value} has values that are too close together, or more than {MOST_TARGETS} of them; "
            "leave some out"
        )
    return tuple(targets)


def _number(value: Any, wrong: UserError) -> float:
    if isinstance(value, bool):
        raise wrong
    try:
        return float(value)
    except (TypeError, ValueError):
        raise wrong from None
