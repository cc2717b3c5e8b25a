"""The whole way of a checkpoint to a mask: load, split, learn, measure, save, draw."""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechint.checkpoints import CheckpointLoader
from mechint.data import TokenData
from mechint.device import pick_device
from mechint.errors import UserError
from mechint.learning.method import MaskMethod, importance
from mechint.learning.objectives import Objective
from mechint.learning.trainer import MaskTrainer, Metrics, Training
from mechint.loggers import JsonlLogger, Logger, LoggerGroup, Progress, RunInfo
from mechint.masking import MaskedModel, MaskSet, masks_by_layer, save_masks
from mechint.measurement import channel_means, measure
from mechint.records import RESULT, write_json
from mechint.reporting import RunFiles, Visualizer
from mechint.results import (
    Record,
    describe_inputs,
    describe_mask,
    describe_method,
    describe_model,
    describe_outcome,
    end_record,
    layer_table,
    start_record,
)

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Analysis:
    """One run: everything it needs, as plain objects and values.

    target_sparsity: fraction of units removed, in [0, 1). make_optimizer: takes torch parameter groups.
    """

    checkpoint: str
    target_sparsity: float
    steps: int
    seed: int
    device: str
    dtype: str
    loader: CheckpointLoader
    dataset: Any
    method: MaskMethod
    objective: Objective
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    schedule: Callable[[float], float]
    trainer: MaskTrainer
    visualizer: Visualizer
    loggers: list[Logger]

    def __post_init__(self) -> None:
        if not 0 <= self.target_sparsity < 1:
            raise UserError(
                f"target_sparsity={self.target_sparsity} must lie in [0, 1); it is the fraction of units to remove, e.g. 0.9"
            )
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1")

    def run(self, output_dir: Path, config: Record, group: str | None = None, bar: bool | None = None) -> Record:
        """Learn and measure a mask, leave every file of a run in `output_dir`, and return the content of result.json.

        config: what is recorded as the run's configuration. group: the sweep this run belongs to, for loggers.
        bar: whether to show a progress bar (None: on a terminal).
        """
        record = start_record(config)
        write_json(output_dir / RESULT, record)
        name = f"{output_dir.parent.name}/{output_dir.name}"
        logger = LoggerGroup(self._all_loggers())
        logger.start(RunInfo(name=name, group=group, job_type="analyze", config=config, output_dir=output_dir))
        try:
            self._work(output_dir, record, logger, Progress(bar=bar))
        except BaseException as error:
            end_record(record, "failed", error)
            record["traceback"] = traceback.format_exc()
            logger.finish(succeeded=False)
            write_json(output_dir / RESULT, record)
            raise
        return record

    def _all_loggers(self) -> list[Logger]:
        """The loggers asked for, and metrics.jsonl, which is part of every run."""
        streamed = any(isinstance(logger, JsonlLogger) for logger in self.loggers)
        return self.loggers if streamed else [JsonlLogger(), *self.loggers]

    def _work(self, output_dir: Path, record: Record, logger: LoggerGroup, progress: Progress) -> None:
        started = time.perf_counter()
        generator = seed_everything(self.seed)
        checkpoint = self.loader.load(self.checkpoint, pick_device(self.device), self.dtype)
        data = self.dataset.load(
            checkpoint.tokenizer, checkpoint.name, checkpoint.vocab_size, checkpoint.max_positions, self.seed
        )
        describe_inputs(record, checkpoint, data)
        masked = MaskedModel(checkpoint.model)
        describe_model(record, masked)
        describe_method(record, self.method, self.objective, self.schedule)
        write_json(output_dir / RESULT, record)

        training = self._learn(masked, data, generator, logger, progress)
        masks = self._measure(masked, data, training, record)
        record["cost"]["total_seconds"] = time.perf_counter() - started
        mask_files = save_masks(masks, output_dir, {"checkpoint_sha256": checkpoint.sha256})
        end_record(record, "done")
        run = RunFiles(directory=output_dir, result=record, masks=masks, history=training.history)
        drawn = self.visualizer.draw(run)
        self._report(record, logger, mask_files, drawn)
        write_json(output_dir / RESULT, record)

    def _learn(
        self, masked: MaskedModel, data: TokenData, generator: torch.Generator, logger: LoggerGroup, progress: Progress
    ) -> Training:
        self.method.prepare(masked, self.target_sparsity, generator)
        if self.method.ablation == "mean":
            masked.fill = channel_means(masked, data.calibration, self.trainer.batch_size)

        def on_step(step: int, metrics: Metrics, logged: bool) -> None:
            progress.update(step + 1, {"loss": metrics["loss"], "sparsity": metrics["sparsity"]})
            if logged:
                logger.log(metrics, step)

        with progress:
            progress.start(self.steps)
            return self.trainer.train(
                masked,
                data.calibration,
                self.method,
                self.objective,
                self.make_optimizer,
                self.schedule,
                self.steps,
                generator,
                on_step,
            )

    def _measure(self, masked: MaskedModel, data: TokenData, training: Training, record: Record) -> MaskSet:
        """Measure the final hard mask on evaluation data and describe it in the record."""
        units = self.method.units
        scores = self.method.scores().cpu()
        keep, importance_ = self.method.pools.select(scores), importance(scores)
        kept = units.to_channels(keep)
        variants = {"dense": None, "empty": torch.zeros_like(kept), "masked": kept, "complement": ~kept}
        metrics = measure(masked, data.evaluation, variants, data.evaluation_bytes, self.trainer.batch_size)
        describe_mask(record, units, self.target_sparsity, keep, importance_)
        describe_outcome(record, metrics, training)
        return masks_by_layer(units.space, kept, units.to_channels(importance_))

    def _report(self, record: Record, logger: LoggerGroup, mask_files: list[Path], drawn: list[Path]) -> None:
        """Tell the loggers what the run found, and the record what they could not take."""
        logger.summary({name: record[name] for name in ("metrics", "sparsity", "faithfulness", "loss_degradation_percent")})
        columns, rows = layer_table(record)
        logger.table("layers", columns, rows)
        logger.figures([path for path in drawn if path.suffix == ".png"])
        logger.masks(mask_files)
        advice = logger.finish(succeeded=True)
        record["not_logged"] = logger.not_logged
        if advice:
            log.info(advice)


def seed_everything(seed: int) -> torch.Generator:
    """Seed every generator that libraries may use, and return the one that this run draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries may draw from numpy's global generator
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def summary_lines(record: Record, output_dir: Path) -> list[str]:
    """What a run found and where to look, for the end of its terminal output."""
    sparsity, metrics = record["sparsity"], record["metrics"]
    losses = ", ".join(f"{name} {metrics[name]['loss']:.4f}" for name in ("dense", "empty", "masked"))
    faithful = record["faithfulness"]
    return [
        f"kept {sparsity['kept']} of {sparsity['total']} units: sparsity {sparsity['achieved']:.4f}, "
        f"K {sparsity['k']['kept']} of {sparsity['k']['total']}, V {sparsity['v']['kept']} of {sparsity['v']['total']}",
        f"evaluation loss in nats per token: {losses}; KL {metrics['masked']['kl']:.4f}; faithfulness "
        + ("undefined" if faithful is None else f"{faithful:.3f}"),
        f"report: {output_dir / 'circuit_analysis_report.md'}",
        f"figures: {output_dir}/*.png",
    ]
