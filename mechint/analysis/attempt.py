"""One attempt at a run: who may write into its directory, what it starts from, and what it leaves, however it ends."""

from __future__ import annotations

import copy
import errno
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechint.analysis.describing import (
    Record,
    channels_of,
    checkpoint_info,
    dataset_info,
    end_result,
    layers_of,
    leakage_info,
    mask_info,
    settings_without_effect,
    sparsity_of,
    started_result,
)
from mechint.analysis.preparation import Inputs, Preparation, Prepared
from mechint.analysis.tasks import task_info
from mechint.circuits.gates import judge_gates
from mechint.errors import UserError
from mechint.learning.recipe import Recipe
from mechint.learning.resume import SavedStates
from mechint.learning.trainer import MaskTrainer
from mechint.loggers import JsonlLogger, Logger, LoggerGroup, Progress, RunInfo
from mechint.masking import Units, masks_by_layer
from mechint.masking.ablation import Ablation
from mechint.masking.basis import Basis
from mechint.metrics.evaluation import Measured, faithfulness, loss_degradation_percent
from mechint.metrics.metric import Metric
from mechint.reporting import Visualizer
from mechint.results import Result, RunFiles, save_masks
from mechint.results.diagram import CircuitDrawing
from mechint.results.directories import (
    Occupant,
    clear_run,
    finished_run,
    only_process,
    refuse_other_run,
)
from mechint.results.evidence import Evidence, save_evidence
from mechint.results.identity import config_digest
from mechint.results.mask_files import save_basis
from mechint.results.result import RESULT, Cost, Metrics
from mechint.results.sequences import save_sequences
from mechint.results.units import UnitMeanings
from mechint.results.verdict import judge
from mechint.runtime import distributed
from mechint.runtime.signals import Interrupted, Interruption

log = logging.getLogger(__name__)

# A full or read-only disk is for the user to fix.
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a run is shown: figures, report and loggers."""

    visualizer: Visualizer
    loggers: Sequence[Logger] = ()

    @classmethod
    def none(cls) -> Outputs:
        """For a process that only helps another: nothing is logged or drawn."""
        return cls(visualizer=Visualizer([]))

    def copy(self) -> Outputs:
        """The same for another run; loggers hold something open, so that each run needs its own."""
        return replace(self, loggers=copy.deepcopy(self.loggers))

    @property
    def all_loggers(self) -> list[Logger]:
        """The loggers asked for, and metrics.jsonl, which is part of every run."""
        streamed = any(isinstance(logger, JsonlLogger) for logger in self.loggers)
        return [*([] if streamed else [JsonlLogger()]), *self.loggers]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out; nothing here changes its numbers.

    group: the sweep that the run belongs to, for loggers. bar: whether to show a progress bar (None: on a terminal).
    resume: whether to leave a finished run of the same configuration and checkpoint as it is, and to continue an
    unfinished one. preparation: shares models and tokens with other runs.
    """

    group: str | None = None
    bar: bool | None = None
    resume: bool = True
    preparation: Preparation = field(default_factory=Preparation)


@dataclass(frozen=True)
class Outcome:
    """What a run found: keep, bool [U], and importance, float [U], of its units, what that does, and what it took.

    basis: the coordinates that units are made of; None: the channels.
    """

    units: Units
    target: float
    keep: Tensor
    importance: Tensor
    measured: Measured
    cost: Cost
    basis: Basis | None = None
    history: Sequence[Record] = ()
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, while it lasts. result: what result.json says so far."""

    directory: Path
    result: Result
    logger: LoggerGroup
    progress: Progress
    states: SavedStates
    interruption: Interruption
    outputs: Outputs
    options: RunOptions
    started: float

    def describe(self, prepared: Prepared, recipe: Recipe, trainer: MaskTrainer, target: float) -> None:
        """Add what is known once the checkpoint and the tokens are loaded and the method is prepared for a target."""
        checkpoint, data, result = prepared.checkpoint, prepared.data, self.result
        result.checkpoint = checkpoint_info(checkpoint, prepared.masked)
        result.dataset = dataset_info(data)
        result.mask = mask_info(recipe)
        result.leakage = leakage_info(data)
        result.task = task_info(data)
        without_effect = settings_without_effect(recipe, prepared.masked, trainer, target)
        result.notes = [*checkpoint.notes, *data.notes, *without_effect]

    def continued(self, step: int, history: list[Record]) -> None:
        """Tell the loggers, which begin afresh, what an earlier attempt told them; say where the run continues."""
        for line in history:
            self.logger.log({name: value for name, value in line.items() if name != "step"}, line["step"])
        self.result.resumed = [*self.result.resumed, step]
        self.result.write(self.directory)
        log.info("continuing after step %d", step)

    def measure(
        self,
        prepared: Prepared,
        kept: Tensor,
        ablation: Ablation,
        trainer: MaskTrainer,
        objective: Metric | None = None,
    ) -> Measured:
        """The four models on evaluation data for kept channels bool [N], with progress over the sequences."""
        with self.progress as progress:
            progress.start(len(prepared.data.evaluation), "measuring", "sequence")
            return trainer.fit(
                lambda size: prepared.measure(kept, ablation, size, progress.update, objective)
            )

    def finish(self, outcome: Outcome) -> None:
        """Add what was found, and leave masks, table, figures and report; the caller of `work` writes result.json."""
        units, keep, result = outcome.units, outcome.keep, self.result
        measured = outcome.measured
        dense, empty, masked = (measured.metrics[name]["loss"] for name in ("dense", "empty", "masked"))
        result.sparsity = sparsity_of(units, outcome.target, keep)
        result.channels = channels_of(units, keep, result.checkpoint.tied_kv_layers)
        result.layers = layers_of(units, keep, outcome.importance)
        result.metrics = Metrics.model_validate(measured.metrics)
        result.loss_degradation_percent = loss_degradation_percent(dense, masked)
        result.faithfulness = faithfulness(dense, empty, masked)
        result.loss_degradation_percent_se = measured.loss_degradation_percent_se
        result.faithfulness_se = measured.faithfulness_se
        result.cost = outcome.cost
        result.cost.total_seconds = time.perf_counter() - self.started
        result.cost.threads = torch.get_num_threads()

        masks = masks_by_layer(units.space, units.to_channels(keep), units.to_channels(outcome.importance))
        identity = {"checkpoint_sha256": result.checkpoint.sha256 or ""}
        files = [*save_masks(masks, self.directory, identity), save_sequences(measured, self.directory)]
        if outcome.basis is not None:
            files.append(save_basis(units.space, outcome.basis, self.directory))
        if outcome.evidence is not None:
            files.append(save_evidence(outcome.evidence, self.directory, identity))
        history, of_channel = list(outcome.history), units.of_channel
        result.verdict = judge(result, history)
        judge_gates(result, result.config.get("gates"))
        end_result(result, "done")
        energy = None if outcome.basis is None else outcome.basis.energy
        told = (CircuitDrawing.read(self.directory), UnitMeanings.read(self.directory))
        run = RunFiles(self.directory, result, masks, history, outcome.evidence, of_channel, energy, *told)
        _export_if_room(run)
        drawn = self.outputs.visualizer.draw_if_room(run)
        self._report(files, drawn)

    def _report(self, files: list[Path], drawn: list[Path]) -> None:
        """Tell the loggers what the run found, and the result what they could not take."""
        content = self.result.as_json()
        found = ("metrics", "sparsity", "faithfulness", "loss_degradation_percent")
        self.logger.summary({name: content[name] for name in found})
        if self.result.stability is not None:
            shown = {name: content["stability"][name] for name in ("iou", "consensus")}
            self.logger.summary({"stability": shown})
        columns = list(content["layers"][0])
        rows = [[layer[column] for column in columns] for layer in content["layers"]]
        self.logger.table("layers", columns, rows)
        self.logger.figures([path for path in drawn if path.suffix == ".png"])
        self.logger.masks(files)
        advice = self.logger.finish(succeeded=True)
        self.result.not_logged = self.logger.not_logged
        if advice:
            log.info(advice)


def attempt_run(
    directory: Path,
    config: Record,
    inputs: Inputs,
    outputs: Outputs,
    options: RunOptions,
    work: Callable[[Attempt], None],
) -> Result:
    """Carry a run out in its directory, and return the content of its result.json.

    config: what is recorded as the run's configuration. work: finds the mask and calls `Attempt.finish`. A run that is
    done already is left as it is. However `work` ends, result.json says so.

    Raises UserError where the directory holds another run, Interrupted where a signal asked the run to stop.
    """
    with only_process(directory), Interruption() as interruption:
        digest = _digest(directory, config, inputs)
        refuse_other_run(directory, config, digest)
        states = SavedStates(directory, digest)
        finished = finished_run(directory, digest) if options.resume else None
        if distributed.from_first(finished is not None):
            log.info("this run is already finished (resume=false repeats it): %s", directory)
            states.remove()
            return finished or Result(status="done")
        result = started_result(config)
        result.config_digest = digest
        before = Occupant.of(directory).result
        if options.resume and states.newest() is not None:
            result.resumed = [] if before is None else before.resumed
        else:
            states.remove()
        clear_run(directory)
        result.write(directory)
        logger = LoggerGroup(outputs.all_loggers)
        name = f"{directory.parent.name}/{directory.name}"
        logger.start(
            RunInfo(name=name, group=options.group, job_type="analyze", config=config, output_dir=directory)
        )
        progress = Progress(bar=options.bar)
        started = time.perf_counter()
        attempt = Attempt(
            directory, result, logger, progress, states, interruption, outputs, options, started
        )
        try:
            work(attempt)
        except BaseException as error:
            options.preparation.forget()  # whatever state it is in
            _write_failure(directory, result, error)
            logger.finish(succeeded=False)
            if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
                raise UserError(
                    f"{directory} cannot be written ({error.strerror}); free some space, and the same "
                    "command continues the run"
                ) from error
            raise
        with interruption.held():
            result.write(directory)
            states.remove()
        return result


def record_failure(directory: Path, config: Record, error: BaseException) -> None:
    """Leave the error of a run that failed before it could begin, unless another run's result is there."""
    if Occupant.of(directory).gives_way_to(None):
        _write_failure(directory, started_result(config), error)


def child_config(config: Record, directory: Path, **changes: Any) -> Record:
    """The configuration of a run that is part of another, in a directory of its own."""
    told = {**config, **changes}
    if "gates" in told:
        told["gates"] = []  # the whole is judged by them, not its parts
    basis = told.get("basis")
    if isinstance(basis, dict) and basis.get("proofs"):  # of the whole, once
        told["basis"] = {**basis, "proofs": False}
    if "output_dir" in config:
        told["output_dir"] = str(directory)
    return told


def _digest(directory: Path, config: Record, inputs: Inputs) -> str:
    try:
        return config_digest(config, inputs.fingerprint())
    except BaseException as error:
        record_failure(directory, config, error)
        raise


def _write_failure(directory: Path, result: Result, error: BaseException) -> None:
    interrupted = isinstance(error, Interrupted)
    end_result(result, "interrupted" if interrupted else "failed", error)
    if not interrupted:
        result.traceback = "".join(traceback.format_exception(error))
    try:
        result.write(directory)
    except OSError as full:
        log.error("%s cannot be written: %s", directory / RESULT, full.strerror or full)


def _export_if_room(run: RunFiles) -> None:
    """Write the tables of channels and of units; where the disk is full, a note says that they are missing."""
    try:
        run.export_channels()
        run.export_necessity()
    except OSError as error:
        run.result.add_notes(f"channels.csv or necessity.csv is missing: {error.strerror or error}")
