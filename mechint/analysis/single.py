"""From one checkpoint to one mask: load, learn, measure, save, draw."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechint.analysis.attempt import Attempt, Outcome, Outputs, RunOptions, attempt_run
from mechint.analysis.chance import Controls
from mechint.analysis.costs import add_part, cost_of
from mechint.analysis.describing import (
    Record,
    basis_info,
    binarization_gap,
    finishing_info,
)
from mechint.analysis.null import kl_recovered, measure_null
from mechint.analysis.paraphrases import compare_with_paraphrases, to_learn_on
from mechint.analysis.preparation import Inputs, Prepared
from mechint.analysis.proofs import (
    MISSING_NULL,
    MISSING_SUBSPACES,
    MISSING_TRANSFER,
    carried,
    load_second_text,
    transfer_of,
)
from mechint.analysis.rivals import require_comparable, rival_info
from mechint.analysis.saved import fitted
from mechint.circuits import CircuitStudy
from mechint.circuits.drawing import draw
from mechint.data.batch import Batch
from mechint.data.token_data import TokenData
from mechint.errors import UserError
from mechint.learning.learner import StepMetrics
from mechint.learning.recipe import Recipe
from mechint.learning.resume import Saver
from mechint.learning.trainer import MaskTrainer, Training
from mechint.masking import MaskedModel
from mechint.masking.ablation import Ablation
from mechint.masking.basis import Basis
from mechint.masking.masks import flat_keep
from mechint.masking.random_masks import only_mask
from mechint.masking.sites import in_basis
from mechint.masking.units import Selection
from mechint.methods.bases import ChannelBasis
from mechint.methods.method import LearnedMethod, MaskMethod, ScoringMethod, importance
from mechint.metrics.evaluation import Evaluator
from mechint.results import Result, RunFiles
from mechint.results.circuit import CircuitInfo, RivalInfo
from mechint.results.mask_files import load_basis
from mechint.results.result import Cost, Proofs, Transfer
from mechint.runtime.seeds import deterministic, seed_everything
from mechint.runtime.signals import PATIENCE

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Analysis:
    """One mask for one checkpoint.

    target_sparsity: fraction of units removed, in [0, 1). seed: of which calibration sequences are drawn and of every
    random draw of the method. within: a run whose kept units are the only ones that this run may keep, and whose basis
    this run begins with. basis_seed: of the calibration sequences that a basis is fitted to; None: as `seed`. held_out:
    calibration sequences, the last ones, that nothing is learned from. circuit: what is measured on tasks.
    rival_of: a run whose kept units cost something here.

    Raises UserError for values out of range.
    """

    inputs: Inputs
    recipe: Recipe
    trainer: MaskTrainer
    outputs: Outputs
    target_sparsity: float
    seed: int = 0
    controls: Controls = field(default_factory=Controls)
    within: RunFiles | None = field(default=None, repr=False)
    basis_seed: int | None = None
    held_out: int = 0
    circuit: CircuitStudy | None = None
    rival_of: RunFiles | None = field(default=None, repr=False)

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
        fresh = replace(self, recipe=copy.deepcopy(self.recipe))  # nothing of this run is in it
        with deterministic(self.trainer.deterministic):
            prepared = attempt.options.preparation(self.inputs, self.seed)
            # Here, so that a run draws the same numbers whether or not it had to load the model.
            generator = seed_everything(self.seed)
            prepared = self.prepare(prepared, generator)
            attempt.describe(prepared, self.recipe, self.trainer, self.target_sparsity)
            attempt.result.write(attempt.directory)
            self._announce(prepared, attempt)
            second = self.second_text(prepared)  # before learning, so that a wrong path costs nothing
            paraphrased = to_learn_on(self, prepared)
            training, prepared = self.learn(prepared, generator, attempt)
            outcome = self._measure(prepared, training, attempt)
            if paraphrased is not None and attempt.result.circuit is not None:
                compare_with_paraphrases(
                    fresh.another(),
                    paraphrased,
                    outcome.keep,
                    outcome.basis,
                    attempt.result.circuit,
                    outcome.cost,
                    attempt,
                )
            attempt.result.proofs = self._prove(fresh, prepared, outcome, second, attempt)
        attempt.finish(outcome)

    def prepare(self, prepared: Prepared, generator: torch.Generator, saved: Basis | None = None) -> Prepared:
        """Let basis, method and ablation see the model; the same with the model in its basis.

        saved: the basis of another run, to be in instead of one that is fitted here.
        """
        masked, recipe, calibration = prepared.masked, self.recipe, self.calibration(prepared)
        within = None if self.within is None else flat_keep(masked.space, self.within.masks)
        view = in_basis(masked, saved) if saved is not None else self._fit_basis(prepared, calibration)
        recipe.method.prepare(view, self.target_sparsity, generator, within)
        if self.rival_of is not None:
            require_comparable(self.rival_of, prepared.checkpoint.sha256, view)
            self._avoid(self.rival_of)
        recipe.ablation = self.trainer.fit(lambda size: recipe.ablation.fit(view, calibration, size))
        return prepared.seen_in(view)

    def _fit_basis(self, prepared: Prepared, moments: Batch) -> MaskedModel:
        """The model in the basis that the recipe's method finds from the moments of calibration sequences."""
        masked, basis, ablation = prepared.masked, self.recipe.basis, self.recipe.ablation
        if self.basis_seed not in (None, self.seed) and not isinstance(basis, ChannelBasis):
            checkpoint = prepared.checkpoint
            moments = self.inputs.dataset.load(
                checkpoint.tokenizer,
                checkpoint.name,
                checkpoint.vocab_size,
                checkpoint.max_positions,
                self.basis_seed or 0,
            ).calibration
        start = None if self.within is None else load_basis(masked.space, self.within.directory)
        fitted_with = self.seed if self.basis_seed is None else self.basis_seed
        return self.trainer.fit(
            lambda size: basis.fit(Evaluator(masked, moments, ablation, size), fitted_with, start)
        )

    def _avoid(self, other: RunFiles) -> None:
        """Let units cost something that another run keeps. Raises UserError where the method cannot."""
        method = self.method
        if not (isinstance(method, LearnedMethod) and method.avoidable):
            raise UserError("rival_of needs a method that can avoid units: mask=topk or mask=ensemble")
        kept = flat_keep(method.units.space, other.masks)
        method.avoided = method.units.of_channels(kept.float()) > 0  # type: ignore[misc]

    def calibration(self, prepared: Prepared) -> Batch:
        """The sequences that this run may learn from."""
        data = prepared.data.calibration
        return data[: len(data) - self.held_out]

    def learn(
        self, prepared: Prepared, generator: torch.Generator, attempt: Attempt
    ) -> tuple[Training, Prepared]:
        """Find the scores of all units, from calibration data alone; and the model in the basis as it was learned."""
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
            training = self.trainer.train(
                prepared.masked,
                self.calibration(prepared),
                recipe,
                generator,
                on_step,
                Saver(attempt.states, attempt.interruption, attempt.continued),
                on_trial,
            )
        basis = prepared.masked.basis
        return training, prepared if basis is None else prepared.seen_in(
            in_basis(prepared.masked, basis.frozen())
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
        method, units = self.method, self.method.units
        scores = training.scores.cpu()
        keep = method.pools.select(scores)
        if isinstance(method, ScoringMethod) and self.recipe.ablation.learned:
            self.fit_ablation(prepared, keep)  # methods that learn have learned it together with the mask
        ablation = self.recipe.ablation
        result, cost, started = attempt.result, cost_of(training), time.perf_counter()
        measured = attempt.measure(
            prepared, units.to_channels(keep), ablation, self.trainer, self.recipe.objective
        )
        add_part(cost, "measuring", started, 4 * prepared.data.evaluation.size)
        if finishing := finishing_info(training, self.recipe.objective.name):
            result.finishing = finishing
        result.rival = self.rival_of_mask(keep)
        result.circuit = self.study_circuit(prepared, keep, scores, cost, attempt.directory)
        self.add_random_masks(result, prepared, keep, cost)
        result.basis = basis_info(prepared.masked.basis, units.space, self.recipe)
        result.binarization_gap = None  # there is none for methods that only score
        if isinstance(method, LearnedMethod):
            soft = method.soft_gates()
            soft_kl = None
            if soft is not None:
                gates = units.to_channels(soft)
                soft_kl = self.trainer.fit(lambda size: prepared.kl(gates, ablation, size))
            kl, kept = measured.sequences["kl"][2], int(keep.sum())
            positions, documents = measured.positions, measured.documents
            result.binarization_gap = binarization_gap(kl, kept, soft, soft_kl, positions, documents)
        return Outcome(
            units,
            self.target_sparsity,
            keep,
            importance(scores),
            measured,
            cost,
            prepared.masked.basis,
            training.history,
        )

    def study_circuit(
        self,
        prepared: Prepared,
        keep: Tensor,
        ranking: Tensor,
        cost: Cost,
        directory: Path,
        selection: Selection | None = None,
    ) -> CircuitInfo | None:
        """What a mask keep, bool [U], and a ranking [U] are worth as circuits of the data's task; None without one.

        What single units do is written into the directory. selection: what the ranking is; None: the method's own.
        """
        if self.circuit is None or prepared.data.task is None:
            return None
        log.info("measuring the circuit on the task %s", prepared.data.task.name)
        study, method, calibration = self.circuit, self.method, self.calibration(prepared)
        started = time.perf_counter()
        info = self.trainer.fit(
            lambda size: study.measure(
                prepared.masked,
                prepared.data,
                method.units,
                keep,
                ranking,
                self.recipe.ablation,
                calibration,
                size,
                selection or method.selection,
                self.seed,
            )
        )
        meanings = study.explain(
            prepared.masked, prepared.data, method.units, keep, ranking, prepared.checkpoint.tokenizer
        )
        if meanings is not None:
            meanings.write(directory)
        draw(
            prepared.masked,
            prepared.data.evaluation,
            method.units,
            keep,
            ranking,
            self.recipe.ablation,
            prepared.checkpoint.tokenizer,
        ).write(directory)
        add_part(cost, "circuit", started, 0 if info is None else info.tokens)
        return info

    def study_saved(
        self,
        prepared: Prepared,
        basis: Basis | None,
        keep: Tensor,
        ranking: Tensor,
        cost: Cost,
        directory: Path,
    ) -> CircuitInfo | None:
        """The same for a mask that other runs have found, in their basis."""
        if self.circuit is None or prepared.data.task is None:
            return None
        seen = prepared.seen_in(in_basis(prepared.masked, basis))
        self.fit_ablation(seen, keep)
        return self.study_circuit(seen, keep, ranking, cost, directory, "rank")

    def fit_ablation(self, prepared: Prepared, keep: Tensor) -> Ablation:
        """The ablation for a mask keep, bool [U], that was not learned together with it; the recipe has it from now."""
        calibration, kept = self.calibration(prepared), self.method.units.to_channels(keep)
        self.recipe.ablation = self.trainer.fit(
            lambda size: fitted(self.recipe.ablation, prepared.masked, calibration, kept, size)
        )
        return self.recipe.ablation

    def rival_of_mask(self, keep: Tensor) -> RivalInfo | None:
        """What a mask keep, bool [U], shares with the run that it should differ from; None without one."""
        return None if self.rival_of is None else rival_info(self.rival_of, self.method.units, keep)

    def add_random_masks(
        self, result: Result | Transfer, prepared: Prepared, keep: Tensor, cost: Cost
    ) -> None:
        """Measure matched random masks beside the mask, keep bool [U], unless none are asked for."""
        if not self.controls.random_masks:
            return
        alone = (
            "there are no random masks to compare with: no other mask keeps as many units in the same places"
        )
        if only_mask(self.method.units, keep):
            if isinstance(result, Result):
                result.add_notes(alone)
            return
        started, units, ablation = time.perf_counter(), self.method.units, self.recipe.ablation
        found = self.trainer.fit(
            lambda size: self.controls.measure(prepared, units, keep, ablation, size, cost.tokens, self.seed)
        )
        if found is not None:
            add_part(cost, "random masks", started, (found.count + 2) * found.tokens)
        if found is not None and found.same and isinstance(result, Result):
            by_norm = ", and of every quarter of them by norm" if found.match == "norms" else ""
            every = found.same == found.count
            told = (
                f"{found.same} of {found.count} random masks are the run's own mask, which few others match"
            )
            result.add_notes(f"{alone if every else told}{by_norm}")
            found = None if every else found
        result.random_masks = found

    def second_text(self, prepared: Prepared) -> TokenData | None:
        """The second text that the mask is measured on; None where none is asked for. Raises UserError."""
        wanted = self.recipe.basis.second_text
        return None if wanted is None else load_second_text(self.inputs, prepared, wanted)

    def _prove(
        self,
        fresh: Analysis,
        prepared: Prepared,
        outcome: Outcome,
        second: TokenData | None,
        attempt: Attempt,
    ) -> Proofs | None:
        """What a run in a basis has to show; None for channels. fresh: this analysis as it was before it ran."""
        if prepared.masked.basis is None:
            return None
        proofs = self.prove_mask(prepared, outcome.keep, second, outcome.cost, attempt)
        missing, permutations = [MISSING_SUBSPACES], self.controls.permutations
        if not self.recipe.basis.proofs:
            missing.append(MISSING_NULL.format(permutations))
        else:
            kl, started = outcome.measured.metrics, time.perf_counter()
            recovered = kl_recovered(kl["masked"]["kl"], kl["empty"]["kl"])
            proofs.null = measure_null(fresh, prepared, permutations, [recovered], attempt)
            add_part(outcome.cost, "permuted models", started, proofs.null.tokens)
        proofs.missing = [*missing, *proofs.missing]
        return proofs

    def prove_mask(
        self, prepared: Prepared, keep: Tensor, second: TokenData | None, cost: Cost, attempt: Attempt
    ) -> Proofs:
        """What can be shown of one mask alone, keep bool [U]: that weights carry its directions, and a second text."""
        started, kept = time.perf_counter(), self.method.units.to_channels(keep)
        proofs = Proofs(carried=carried(prepared.masked, kept), missing=[])
        add_part(cost, "what the weights carry", started, 0)
        if second is None:
            proofs.missing = [MISSING_TRANSFER]
            return proofs
        started, ablation = time.perf_counter(), self.recipe.ablation
        elsewhere = replace(prepared, data=second)
        measured = attempt.measure(elsewhere, kept, ablation, self.trainer)
        transfer = transfer_of(measured, second, prepared.data)
        add_part(cost, "second text", started, 4 * second.evaluation_tokens)
        self.add_random_masks(transfer, elsewhere, keep, cost)
        proofs.transfer = transfer
        return proofs
