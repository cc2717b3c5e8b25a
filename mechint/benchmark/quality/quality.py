"""Methods x models x sparsities x seeds at an equal number of passes, resumable cell by cell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

from mechint.analysis.attempt import RunOptions
from mechint.analysis.describing import Record, end_record, start_record
from mechint.analysis.preparation import Preparation
from mechint.analysis.single import Analysis
from mechint.benchmark.quality.cells import Cell, Entry, entries, in_bases, kind_of, spend
from mechint.benchmark.quality.figure import draw_quality
from mechint.benchmark.quality.summary import summarise
from mechint.benchmark.quality.table import as_markdown, write_tables
from mechint.benchmark.speed.table import machine
from mechint.errors import UserError
from mechint.runtime.device import pick_device
from mechint.runtime.files import write_json

FILENAME = "benchmark.json"

# Composes conf/analyze.yaml with overrides: the analysis, and its configuration in plain values.
Compose = Callable[[Sequence[str]], tuple[Analysis, Record]]

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class QualityBenchmark:
    """Every method on every model, at every sparsity, with every seed; each cell is an ordinary run below `runs`.

    models, methods: 'NAME', 'NAME KEY=VALUE ...' or {LABEL: the same}; names are checkpoints and mask options.
    reference: the method, by label, that the others are held against. passes: batches through the model that a run may
    take, `finishing_share` of them for a finishing pass. bases: options of conf/basis in which every method runs, but
    `energy` only where there are directions. finishing_trials: exchanges that the finishing pass of every method may
    try; None: each method's own. overrides: for every run. compose: makes an analysis from overrides.

    Raises UserError for settings that contradict each other.
    """

    models: Sequence[str | Mapping[str, str]]
    methods: Sequence[str | Mapping[str, str]]
    reference: str
    sparsities: Sequence[float]
    seeds: Sequence[int]
    passes: int
    finishing_share: float
    compose: Compose
    bases: Sequence[str] = ("channels",)
    finishing_trials: int | None = None
    overrides: Sequence[str] = ()
    resume: bool = True
    _failed: dict[tuple[str, str | None], str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._models = entries(self.models, "models")
        self._methods = in_bases(entries(self.methods, "methods"), self.bases)
        if self.reference not in [method.label for method in self._methods]:
            raise UserError(f"reference={self.reference} is not one of the methods; add it, or name another")
        if not self.sparsities or not self.seeds or self.passes < 1 or not 0 <= self.finishing_share < 1:
            raise UserError(
                "give at least one of sparsities and of seeds, passes of at least 1 and finishing_share in [0, 1)"
            )

    def run(self, output_dir: Path, config: Record) -> Record:
        """Run what is not done, write benchmark.json after each cell, tables and figure at the end."""
        plans = self._plans()
        record = start_record(config) | {
            "machine": self._machine(),
            "passes": self.passes,
            "seeds": list(self.seeds),
            "reference": self.reference,
            "cells": [],
            "failed": [],
        }
        preparation = Preparation()
        cells = self._cells()
        for number, cell in enumerate(cells, start=1):
            try:
                self._add(record, cell, plans[cell.model, cell.method], output_dir, preparation)
            except UserError as error:
                self._note(record, cell, error)
            write_json(output_dir / FILENAME, record)
            if record["cells"] and record["cells"][-1]["directory"] == str(cell.directory):
                log.info("%d of %d: %s", number, len(cells), _line(record["cells"][-1]))
        if not record["cells"]:
            raise UserError(f"no run succeeded: {'; '.join(self._failed.values())}")
        record["summary"] = summarise(record["cells"], output_dir, self.reference)
        end_record(record, "done")
        write_tables(record, output_dir)
        draw_quality(record, output_dir)
        write_json(output_dir / FILENAME, record)
        return record

    def table(self, record: Record) -> str:
        """What was measured, as Markdown."""
        return as_markdown(record)

    def _machine(self) -> str:
        analysis, _ = self.compose([*self.overrides])
        return machine(pick_device(analysis.inputs.device), torch.get_num_threads())

    def _plans(self) -> dict[tuple[Entry, Entry], list[str]]:
        """What every model and method adds to the overrides; a model or method that is not there is found here."""
        plans = {}
        for model, method in product(self._models, self._methods):
            common = [*self.overrides, *model.overrides]
            if self.finishing_trials is not None:
                common.append(f"mask.finishing_trials={self.finishing_trials}")
            common += method.overrides
            overrides = [f"checkpoint={_quoted(model.option)}", f"mask={method.option}", *common]
            analysis, _ = self.compose(overrides)
            if method == self._methods[0]:
                try:
                    analysis.inputs.loader.fingerprint(model.option)
                except UserError as error:
                    raise UserError(f"models: {model.label}: {error}") from error
            batch_size = analysis.trainer.batch_size
            if not isinstance(batch_size, int):
                raise UserError(f"trainer.batch_size={batch_size} would make passes unequal; give a number")
            refuse_taken(common)
            budget = spend(analysis.recipe, self.passes, batch_size, self.finishing_share)
            plans[model, method] = [*overrides, *budget, "logger=none", "visualizer=none"]
        return plans

    def _cells(self) -> list[Cell]:
        """By model, then seed, so that a model is loaded once and its tokens once per seed."""
        order = product(self._models, self.seeds, self.sparsities, self._methods)
        return [Cell(model, method, sparsity, seed) for model, seed, sparsity, method in order]

    def _add(
        self, record: Record, cell: Cell, plan: list[str], output_dir: Path, preparation: Preparation
    ) -> None:
        """Run a cell, or find it done, and add its numbers; nothing where its model or method has failed before."""
        if (cell.model.label, None) in self._failed or (cell.model.label, cell.method.label) in self._failed:
            return
        sets = [f"target_sparsity={cell.sparsity}", f"seed={cell.seed}"]
        analysis, config = self.compose([*plan, *sets])
        directory = output_dir / cell.directory
        options = RunOptions(bar=False, resume=self.resume, preparation=preparation)
        result = analysis.run(directory, config, options).as_json()
        [reference] = [method for method in self._methods if method.label == self.reference]
        kind = kind_of(analysis.method, cell.method == reference, cell.method.option == reference.option)
        record["cells"].append(_numbers(cell, kind, result))

    def _note(self, record: Record, cell: Cell, error: UserError) -> None:
        """Remember what will fail again: the model, unless another method has already run on it."""
        works = any(done["model"] == cell.model.label for done in record["cells"])
        method = cell.method.label if works else None
        self._failed[cell.model.label, method] = f"{cell.model.label}: {error}"
        record["failed"].append({"model": cell.model.label, "method": method, "reason": str(error)})
        log.error("%s%s: %s; left out", cell.model.label, f", {method}" if method else "", error)


def refuse_taken(overrides: Sequence[str]) -> None:
    """Raise UserError where overrides set what follows from the passes."""
    for given in overrides:
        name = given.partition("=")[0].lstrip("+")
        if name in ("steps", "mask.sequences_per_stage", "trainer.passes", "trainer.finishing_share"):
            raise UserError(f"{name} follows from what.passes and what.finishing_share here; leave it out")


def _numbers(cell: Cell, kind: str, result: Record) -> Record:
    """What the tables need of a run's result."""
    metrics, cost, gap = result["metrics"], result["cost"], result["binarization_gap"]
    return {
        "model": cell.model.label,
        "method": cell.method.label,
        "kind": kind,
        "sparsity": cell.sparsity,
        "seed": cell.seed,
        "directory": str(cell.directory),
        "ablation": result["mask"]["ablation"],
        "kl": metrics["masked"]["kl"],
        "loss": metrics["masked"]["loss"],
        "dense_loss": metrics["dense"]["loss"],
        "empty_kl": metrics["empty"]["kl"],
        "kept": result["sparsity"]["kept"],
        "total": result["sparsity"]["total"],
        "passes": cost["tokens"] / (cost["batch_size"] * result["dataset"]["sequence_length"]),
        "seconds": cost["seconds"],
        "binarization_gap": None if gap is None else gap["gap"],
    }


def _line(cell: Record) -> str:
    return (
        f"{cell['model']}, {cell['method']}, sparsity {cell['sparsity']:g}, seed {cell['seed']}: "
        f"KL {cell['kl']:.4f}, {cell['passes']:.0f} passes, {cell['seconds']:.0f} s"
    )


def _quoted(value: str) -> str:
    """A value that the override grammar takes as it is."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
