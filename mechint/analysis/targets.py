"""Masks for several target sparsities from one run, each inside the one before."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from mechint.analysis.preparation import Preparation
from mechint.analysis.single import Analysis, Attempt
from mechint.errors import UserError
from mechint.masking import Units, masks_by_layer
from mechint.masking.masks import flat_importance, flat_keep
from mechint.methods.method import importance
from mechint.results import Result, RunFiles, save_masks
from mechint.runtime.files import plain

log = logging.getLogger(__name__)

# What all targets together may cost, as a multiple of a run for one of them.
COST = 1.5

# More targets than this tell nothing more, and each takes a run of its own.
MOST_TARGETS = 100


@dataclass(kw_only=True)
class NestedTargets(Analysis):
    """A ladder of analyses: each target's mask is learned among the units that the target before it keeps.

    Every target's run is an ordinary run in sparsity_<target>/. Together they have 1.5 times the steps and finishing
    trials of a run for a single target, the sparser ones more of them. The directory above holds the mask of the
    highest target, and one ranking of all units from which every target's mask can be read: `importance` orders units
    by how many targets keep them, then by the scores of the last run in which they could be kept.

    targets: sparsities, ascending; target_sparsity is the last of them.
    """

    targets: tuple[float, ...]

    def run(
        self,
        output_dir: Path,
        config: Record,
        group: str | None = None,
        bar: bool | None = None,
        resume: bool = True,
        preparation: Preparation | None = None,
    ) -> Record:
        """As Analysis.run, after a run for each target."""
        self._group, self._bar, self._resume = group or output_dir.name, bar, resume
        self._singles = [self._single(number) for number in range(len(self.targets))]
        return super().run(output_dir, config, group, bar, resume, preparation)

    def _work(self, attempt: Attempt, preparation: Preparation) -> None:
        started, record, output_dir = time.perf_counter(), attempt.record, attempt.output_dir
        runs = self._run_targets(output_dir, record["config"], preparation)
        prepared = preparation(self.loader, self.checkpoint, self.device, self.dtype, self.dataset, self.seed)
        self.method.prepare(prepared.masked, self.target_sparsity, torch.Generator())  # for its units
        units, last = self.method.units, runs[-1]
        describe_inputs(record, prepared.checkpoint, prepared.data)
        describe_model(record, prepared.masked)
        describe_method(record, self.recipe)
        record["notes"] += settings_without_effect(self.method, prepared.masked, self.trainer)

        ranking = one_ranking(units, runs)
        keep = units.of_channels(flat_keep(units.space, last.masks))
        describe_mask(record, units, self.target_sparsity, keep, importance(ranking))
        describe_outcome(
            record, last.result.as_json()["metrics"], training_of_all([run.result.as_json() for run in runs])
        )
        record["nested"] = [point(run) for run in runs]
        masks = masks_by_layer(
            units.space, units.to_channels(keep), units.to_channels(importance(ranking)).float()
        )
        record["cost"] |= {"total_seconds": time.perf_counter() - started, "threads": torch.get_num_threads()}
        files = save_masks(masks, output_dir, {"checkpoint_sha256": prepared.checkpoint.sha256})
        end_record(record, "done")
        run = RunFiles(output_dir, Result.parse(plain(record)), masks, [])
        drawn = self.visualizer.draw_if_room(run)
        record["notes"] = run.result.notes
        self._report(record, attempt.logger, files, drawn)

    def _single(self, number: int) -> Analysis:
        """The analysis of one target, with objects of its own where they change or hold something open."""
        shared = {item.name: getattr(self, item.name) for item in fields(Analysis)}
        recipe = copy.deepcopy(self.recipe)
        recipe.method.finishing_trials = self._part(number, recipe.method.finishing_trials)
        recipe.steps = max(1, self._part(number, self.recipe.steps))
        own = {
            "target_sparsity": self.targets[number],
            "recipe": recipe,
            "loggers": copy.deepcopy(self.loggers),
        }
        return Analysis(**{**shared, **own})

    def _part(self, number: int, whole: int) -> int:
        """One target's part of steps or trials: for n targets in the ratio n + 1 : n + 2 : ... : 2n."""
        count = len(self.targets)
        return math.floor(COST * whole * (count + 1 + number) / sum(range(count + 1, 2 * count + 1)))

    def _run_targets(self, output_dir: Path, config: Record, preparation: Preparation) -> list[RunFiles]:
        """An ordinary run for every target, unless it is done already."""
        runs: list[RunFiles] = []
        for number, single in enumerate(self._singles, start=1):
            directory = output_dir / directory_of(single.target_sparsity)
            log.info(
                "target sparsity %g, run %d of %d: %s",
                single.target_sparsity,
                number,
                len(self.targets),
                directory,
            )
            single.within = runs[-1].masks if runs else None
            told = {**config, "target_sparsity": single.target_sparsity, "steps": single.recipe.steps}
            told["nested_in"] = list(self.targets[: number - 1])
            if isinstance(told.get("mask"), dict):
                told["mask"] = {**told["mask"], "finishing_trials": single.method.finishing_trials}
            if "output_dir" in config:
                told["output_dir"] = str(directory)
            single.run(directory, told, self._group, self._bar, self._resume, preparation)
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


def point(run: RunFiles) -> Record:
    """What the result of several targets tells of one of them."""
    result = run.result.as_json()
    sparsity = {name: result["sparsity"][name] for name in ("target", "achieved", "kept", "total")}
    return {
        "directory": run.directory.name,
        **sparsity,
        "metrics": {name: result["metrics"][name] for name in ("masked", "complement")},
        "faithfulness": result["faithfulness"],
        "loss_degradation_percent": result["loss_degradation_percent"],
    }


def directory_of(target: float) -> str:
    """The directory of one target's run."""
    return f"sparsity_{target:g}"


def parse_targets(value: Any) -> tuple[float, ...]:
    """Target sparsities, ascending, from a number, a list of them, or a range "first:last:step" with both ends.

    Raises UserError for anything else and for a list without or with repeated targets.
    """
    wrong = UserError(
        f"target_sparsity={value} is neither a number nor a list or range of them; "
        "use e.g. 0.9, [0.5,0.9] or 0.5:0.9:0.1"
    )
    if isinstance(value, str) and value.count(":") == 2:
        first, last, step = (_number(part, wrong) for part in value.split(":"))
        if not (step > 0 and first <= last):
            raise wrong
        if not (math.isfinite(first + last + step) and (last - first) / step < MOST_TARGETS):
            raise UserError(f"target_sparsity={value} stands for too many values; use at most {MOST_TARGETS}")
        value = [round(first + step * index, 12) for index in range(int((last - first) / step + 1 + 1e-9))]
    items = value if isinstance(value, (list, tuple)) else [value]
    targets = sorted(_number(item, wrong) for item in items)
    if not targets or len(set(targets)) < len(targets):
        raise wrong
    if len(targets) > MOST_TARGETS or len({directory_of(target) for target in targets}) < len(targets):
        raise UserError(
            f"target_sparsity={value} has values too close to each other or more than {MOST_TARGETS} of them; "
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
