"""The way of one checkpoint to one mask: load, learn, measure, save, draw."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechint.analysis.attempt import Attempt, Outcome, Outputs, RunOptions, attempt_run
from mechint.analysis.describing import Record, binarization_gap, cost_of, finishing_info
from mechint.analysis.preparation import Inputs, Measurements, Prepared
from mechint.errors import UserError
from mechint.learning.learner import StepMetrics
from mechint.learning.recipe import Recipe
from mechint.learning.resume import Saver
from mechint.learning.trainer import MaskTrainer, Training
from mechint.masking import MaskSet
from mechint.masking.ablation import Ablation
from mechint.masking.masks import flat_keep
from mechint.methods.method import LearnedMethod, MaskMethod, ScoringMethod, importance
from mechint.results import Result
from mechint.runtime.seeds import deterministic, seed_everything
from mechint.runtime.signals import PATIENCE

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Analysis:
    """One mask for one checkpoint.

    target_sparsity: fraction of units removed, in [0, 1). seed: of which calibration sequences are drawn and of every
    random draw of the method. within: the masks of a run whose kept units are the only ones that this run may keep.

    Raises UserError for values out of range.
    """

    inputs: Inputs
    recipe: Recipe
    trainer: MaskTrainer
    outputs: Outputs
    target_sparsity: float
    seed: int = 0
    within: MaskSet | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.target_sparsity < 1:
            raise UserError(
                f"target_sparsity={self.target_sparsity} must lie in [0, 1); it is the fraction of units to remove, "
                "e.g. 0.9"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed} must be a whole number from 0 to 2^63 - 1")

    @property
    def method(self) -> MaskMethod:
        """The recipe's."""
        return self.recipe.method

    def unseen(self) -> Analysis:
        """The same for a process that only helps another: nothing is logged or drawn."""
        return replace(self, outputs=Outputs.none())

    def another(self, **changes: object) -> Analysis:
        """The same with changes, and with objects of its own where a run changes them or holds something open."""
        own: dict[str, Any] = {
            "recipe": copy.deepcopy(self.recipe),
            "outputs": self.outputs.copy(),
            **changes,
        }
        return replace(self, **own)

    def run(self, output_dir: Path, config: Record, options: RunOptions | None = None) -> Result:
        """Learn and measure a mask, leave every file of a run in `output_dir`, and return the content of result.json.

        config: what is recorded as the run's configuration.

        Raises UserError where `output_dir` holds another run, Interrupted where a signal asked the run to stop.
        """
        return attempt_run(output_dir, config, self.inputs, self.outputs, options or RunOptions(), self._work)

    def _work(self, attempt: Attempt) -> None:
        with deterministic(self.trainer.deterministic):
            prepared = attempt.options.preparation(self.inputs, self.seed)
            # Here, so that a run draws the same numbers whether or not it had to load the model.
            generator = seed_everything(self.seed)
            attempt.describe(prepared, self.recipe, self.trainer)
            attempt.result.write(attempt.directory)
            self.prepare(prepared, generator)
            self._announce(prepared, attempt)
            training = self.learn(prepared, generator, attempt)
            outcome = self._measure(prepared, training, attempt)
        attempt.finish(outcome)

    def prepare(self, prepared: Prepared, generator: torch.Generator) -> None:
        """Let the method and the ablation see the model."""
        masked, recipe, calibration = prepared.masked, self.recipe, prepared.data.calibration
        within = None if self.within is None else flat_keep(masked.space, self.within)
        recipe.method.prepare(masked, self.target_sparsity, generator, within)
        recipe.ablation = self.trainer.fit(lambda size: recipe.ablation.fit(masked, calibration, size))

    def learn(self, prepared: Prepared, generator: torch.Generator, attempt: Attempt) -> Training:
        """Find the scores of all units, from calibration data alone."""
        method, recipe = self.method, self.recipe
        progress, trials = attempt.progress, method.finishing_trials

        def on_step(step: int, metrics: StepMetrics, logged: bool) -> None:
            progress.update(step + 1, {"loss": metrics["loss"], "sparsity": metrics["sparsity"]})
            if logged:
                attempt.logger.log(metrics, step)
            if step + 1 == recipe.steps and trials:
                progress.start(trials, "finishing", "trial")

        def on_trial(tried: int) -> None:
            if tried == 1 and isinstance(method, ScoringMethod):
                progress.start(trials, "finishing", "trial")
            progress.update(tried)

        with progress, attempt.interruption.held(PATIENCE):
            if not isinstance(method, ScoringMethod):
                progress.start(recipe.steps)
            return self.trainer.train(
                prepared.masked,
                prepared.data.calibration,
                recipe,
                generator,
                on_step,
                Saver(attempt.states, attempt.interruption, attempt.continued),
                on_trial,
            )

    def _announce(self, prepared: Prepared, attempt: Attempt) -> None:
        """Say what is about to be done: model, device, tokens, units, directory."""
        model, data = attempt.result.checkpoint, prepared.data
        units, kept = self.method.units.count, int(self.method.pools.quotas(1.0).sum())
        log.info(
            "%s (%s, %s parameters) on %s in %s; %s: %s tokens to learn on, %s to measure on",
            *(model.label, model.architecture, f"{model.num_parameters:,}", model.device, model.dtype),
            *(data.name, f"{data.calibration_tokens:,}", f"{data.evaluation_tokens:,}"),
        )
        log.info("%s units, %s of them to keep; results in %s", f"{units:,}", f"{kept:,}", attempt.directory)

    def _measure(self, prepared: Prepared, training: Training, attempt: Attempt) -> Outcome:
        """What the final hard mask does on evaluation data."""
        method, units, ablation = self.method, self.method.units, self.recipe.ablation
        scores = training.scores.cpu()
        keep = method.pools.select(scores)
        metrics = measure_with_progress(prepared, units.to_channels(keep), ablation, self.trainer, attempt)
        result = attempt.result
        if finishing := finishing_info(training):
            result.finishing = finishing
        result.binarization_gap = None  # there is none for methods that only score
        if isinstance(method, LearnedMethod):
            soft = method.soft_gates()
            soft_kl = None
            if soft is not None:
                gates = units.to_channels(soft)
                soft_kl = self.trainer.fit(lambda size: prepared.kl(gates, ablation, size))
            kl, kept = metrics["masked"]["kl"], int(keep.sum())
            result.binarization_gap = binarization_gap(kl, kept, soft, soft_kl)
        target, cost = self.target_sparsity, cost_of(training)
        return Outcome(units, target, keep, importance(scores), metrics, cost, training.history)


def measure_with_progress(
    prepared: Prepared, kept: Tensor, ablation: Ablation, trainer: MaskTrainer, attempt: Attempt
) -> Measurements:
    """The four models on evaluation data for kept channels bool [N], with progress over the sequences."""
    progress = attempt.progress
    with progress:
        progress.start(len(prepared.data.evaluation), "measuring", "sequence")
        return trainer.fit(lambda size: prepared.measure(kept, ablation, size, progress.update))
