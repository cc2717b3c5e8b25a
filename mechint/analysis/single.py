"""The whole way of a checkpoint to a mask: load, split, learn, measure, save, draw."""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mechint.analysis.describing import (
    Record,
    describe_binarization,
    describe_inputs,
    describe_mask,
    describe_method,
    describe_model,
    describe_outcome,
    end_record,
    layer_table,
    settings_without_effect,
    start_record,
)
from mechint.analysis.preparation import Preparation, Prepared
from mechint.checkpoints import CheckpointLoader
from mechint.data import TokenData
from mechint.errors import UserError
from mechint.learning.learner import StepMetrics
from mechint.learning.recipe import Recipe
from mechint.learning.resume import SavedStates, Saver
from mechint.learning.trainer import MaskTrainer, Training
from mechint.loggers import JsonlLogger, Logger, LoggerGroup, Progress, RunInfo
from mechint.masking import MaskedModel, MaskSet, masks_by_layer
from mechint.masking.masks import flat_keep
from mechint.methods.method import LearnedMethod, MaskMethod, importance
from mechint.reporting import Visualizer
from mechint.results import RunFiles, save_masks
from mechint.results.directories import Occupant, clear_run, finished_run, refuse_other_run
from mechint.results.identity import config_digest
from mechint.results.lock import only_process
from mechint.results.result import RESULT, Result
from mechint.runtime import distributed
from mechint.runtime.files import plain, write_json
from mechint.runtime.seeds import deterministic, seed_everything
from mechint.runtime.signals import PATIENCE, Interrupted, Interruption

log = logging.getLogger(__name__)

# A full or read-only disk is the user's to mend.
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass(kw_only=True)
class Analysis:
    """One run: everything it needs, as plain objects and values.

    target_sparsity: fraction of units removed, in [0, 1). make_optimizer: takes torch parameter groups.
    within: the masks of a run whose kept units are the only ones this run may keep.
    """

    checkpoint: str
    target_sparsity: float
    seed: int
    device: str
    dtype: str
    loader: CheckpointLoader
    dataset: Any
    recipe: Recipe
    trainer: MaskTrainer
    visualizer: Visualizer
    loggers: list[Logger]
    within: MaskSet | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.target_sparsity < 1:
            raise UserError(
                f"target_sparsity={self.target_sparsity} must lie in [0, 1); it is the fraction of units to remove, "
                "e.g. 0.9"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed} must be a whole number from 0 to 2^63 - 1")

    def run(
        self,
        output_dir: Path,
        config: Record,
        group: str | None = None,
        bar: bool | None = None,
        resume: bool = True,
        preparation: Preparation | None = None,
    ) -> Record:
        """Learn and measure a mask, leave every file of a run in `output_dir`, and return the content of result.json.

        config: what is recorded as the run's configuration. group: the sweep this run belongs to, for loggers.
        bar: whether to show a progress bar (None: on a terminal). resume: whether to leave a finished run of the same
        configuration and checkpoint as it is, and to go on with an unfinished one. preparation: shares models and
        tokens with other runs.

        Raises UserError where `output_dir` holds another run, Interrupted where a signal asked the run to stop.
        """
        with only_process(output_dir), Interruption() as interruption:
            digest = self._digest(output_dir, config)
            refuse_other_run(output_dir, config, digest)
            states = SavedStates(output_dir, digest)
            finished = finished_run(output_dir, digest) if resume else None
            if distributed.from_first(finished is not None):
                log.info("this run is already done; resume=false would repeat it: %s", output_dir)
                states.remove()
                return finished.as_json() if finished else {}
            record = {**start_record(config), "config_digest": digest}
            if resume and states.newest() is not None:
                record["resumed"] = earlier_attempts(output_dir)
            else:
                states.remove()
            clear_run(output_dir)
            write_json(output_dir / RESULT, record)
            name = f"{output_dir.parent.name}/{output_dir.name}"
            logger = LoggerGroup(self._all_loggers())
            logger.start(
                RunInfo(name=name, group=group, job_type="analyze", config=config, output_dir=output_dir)
            )
            attempt = Attempt(output_dir, record, logger, Progress(bar=bar), states, interruption)
            preparation = preparation or Preparation()
            try:
                with deterministic(self.trainer.deterministic):
                    self._work(attempt, preparation)
            except BaseException as error:
                preparation.forget()  # whatever state it is in
                _write_failure(output_dir, record, error)
                logger.finish(succeeded=False)
                if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
                    raise UserError(
                        f"{output_dir} cannot be written ({error.strerror}); make room, and the same command goes on"
                    ) from error
                raise
            with interruption.held():
                write_json(output_dir / RESULT, record)
                states.remove()
            return record

    @property
    def method(self) -> MaskMethod:
        """The recipe's."""
        return self.recipe.method

    def unseen(self) -> Analysis:
        """The same for a process that only helps another: nothing is logged or drawn."""
        return dataclasses.replace(self, loggers=[], visualizer=Visualizer([]))

    def _digest(self, output_dir: Path, config: Record) -> str:
        try:
            return config_digest(config, self.loader.fingerprint(self.checkpoint))
        except BaseException as error:
            record_failure(output_dir, config, error)
            raise

    def _all_loggers(self) -> list[Logger]:
        """The loggers asked for, and metrics.jsonl, which is part of every run."""
        streamed = any(isinstance(logger, JsonlLogger) for logger in self.loggers)
        return self.loggers if streamed else [JsonlLogger(), *self.loggers]

    def _work(self, attempt: Attempt, preparation: Preparation) -> None:
        started, record, output_dir = time.perf_counter(), attempt.record, attempt.output_dir
        prepared = preparation(self.loader, self.checkpoint, self.device, self.dtype, self.dataset, self.seed)
        checkpoint, masked, data = prepared.checkpoint, prepared.masked, prepared.data
        # Here, so that a run draws the same numbers whether or not it had to load the model.
        generator = seed_everything(self.seed)
        describe_inputs(record, checkpoint, data)
        describe_model(record, masked)
        describe_method(record, self.recipe)
        record["notes"] += settings_without_effect(self.method, masked, self.trainer)
        write_json(output_dir / RESULT, record)

        training = self._learn(masked, data, generator, attempt)
        masks = self._measure(prepared, training, record)
        record["cost"] |= {"total_seconds": time.perf_counter() - started, "threads": torch.get_num_threads()}
        mask_files = save_masks(masks, output_dir, {"checkpoint_sha256": checkpoint.sha256})
        end_record(record, "done")
        run = RunFiles(output_dir, Result.parse(plain(record)), masks, training.history)
        drawn = self.visualizer.draw_if_room(run)
        record["notes"] = run.result.notes
        self._report(record, attempt.logger, mask_files, drawn)

    def _learn(
        self, masked: MaskedModel, data: TokenData, generator: torch.Generator, attempt: Attempt
    ) -> Training:
        within = None if self.within is None else flat_keep(masked.space, self.within)
        self.method.prepare(masked, self.target_sparsity, generator, within)
        self.recipe.ablation = self.trainer.fit(
            lambda size: self.recipe.ablation.fit(masked, data.calibration, size)
        )
        progress = attempt.progress

        def on_step(step: int, metrics: StepMetrics, logged: bool) -> None:
            progress.update(step + 1, {"loss": metrics["loss"], "sparsity": metrics["sparsity"]})
            if logged:
                attempt.logger.log(metrics, step)

        with progress, attempt.interruption.held(PATIENCE):
            progress.start(self.recipe.steps)
            return self.trainer.train(
                masked,
                data.calibration,
                self.recipe,
                generator,
                on_step,
                Saver(attempt.states, attempt.interruption, attempt.on_resume),
            )

    def _measure(self, prepared: Prepared, training: Training, record: Record) -> MaskSet:
        """Measure the final hard mask on evaluation data and describe it in the record."""
        units = self.method.units
        scores = training.scores.cpu()
        keep, importance_ = self.method.pools.select(scores), importance(scores)
        kept = units.to_channels(keep)
        metrics = self.trainer.fit(lambda size: prepared.measure(kept, self.recipe.ablation, size))
        describe_mask(record, units, self.target_sparsity, keep, importance_)
        describe_outcome(record, metrics, training)
        if isinstance(self.method, LearnedMethod):
            soft = self.method.soft_gates()
            soft_kl = None
            if soft is not None:
                gates, ablation = units.to_channels(soft), self.recipe.ablation
                soft_kl = self.trainer.fit(lambda size: prepared.kl(gates, ablation, size))
            describe_binarization(record, soft, soft_kl)
        return masks_by_layer(units.space, kept, units.to_channels(importance_))

    def _report(self, record: Record, logger: LoggerGroup, mask_files: list[Path], drawn: list[Path]) -> None:
        """Tell the loggers what the run found, and the record what they could not take."""
        found = ("metrics", "sparsity", "faithfulness", "loss_degradation_percent")
        logger.summary({name: record[name] for name in found})
        columns, rows = layer_table(record)
        logger.table("layers", columns, rows)
        logger.figures([path for path in drawn if path.suffix == ".png"])
        logger.masks(mask_files)
        advice = logger.finish(succeeded=True)
        record["not_logged"] = logger.not_logged
        if advice:
            log.info(advice)


@dataclass(frozen=True)
class Attempt:
    """What one attempt at a run writes to, and what may end it early."""

    output_dir: Path
    record: Record
    logger: LoggerGroup
    progress: Progress
    states: SavedStates
    interruption: Interruption

    def on_resume(self, step: int, history: list[Record]) -> None:
        """Tell the loggers, which begin afresh, what an earlier attempt told them; say where the run goes on."""
        for line in history:
            self.logger.log({name: value for name, value in line.items() if name != "step"}, line["step"])
        self.record["resumed"].append(step)
        write_json(self.output_dir / RESULT, self.record)
        log.info("the run goes on after step %d", step)


def earlier_attempts(output_dir: Path) -> list[int]:
    """The steps after which earlier attempts at a run ended."""
    before = Occupant.of(output_dir).result
    return [] if before is None else before.resumed


def record_failure(output_dir: Path, config: Record, error: BaseException) -> None:
    """Leave the error of a run that failed before it could begin, unless another run's result is there."""
    if Occupant.of(output_dir).gives_way_to(None):
        _write_failure(output_dir, start_record(config), error)


def _write_failure(output_dir: Path, record: Record, error: BaseException) -> None:
    interrupted = isinstance(error, Interrupted)
    end_record(record, "interrupted" if interrupted else "failed", error)
    if not interrupted:
        record["traceback"] = "".join(traceback.format_exception(error))
    try:
        write_json(output_dir / RESULT, record)
    except OSError as full:
        log.error("%s cannot be written: %s", output_dir / RESULT, full.strerror or full)
