"""Circuits of several runs against each other: what they share, and what the circuit of one task does on another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from mechint.analysis.rivals import named_basis, same_basis
from mechint.analysis.saved import AT_ONCE, Run
from mechint.checkpoints import Checkpoint
from mechint.circuits.scores import differ, faithfulness_of, interval_of
from mechint.errors import UserError
from mechint.masking import MaskedModel
from mechint.metrics.agreement import Agreement
from mechint.metrics.evaluation import Evaluator, over_positions, resampled
from mechint.metrics.metric import KL, LOGIT_DIFF, NLL, Metric
from mechint.results.between import Between, CircuitOf, SharedChannels, Transfer


@dataclass(frozen=True)
class _Loaded:
    """A run's mask, bool [N], in the model's view that it is made for."""

    view: MaskedModel
    kept: torch.Tensor


def between(runs: Mapping[str, Run | str | Path], device: str = "auto", dtype: str = "auto") -> Between:
    """Overlap and transfer of the masks of two or more runs of one checkpoint; names are free.

    Raises UserError where there are fewer, or where they are of different checkpoints.
    """
    found = {name: run if isinstance(run, Run) else Run.read(run) for name, run in runs.items()}
    if len(found) < 2:
        raise UserError("give two or more runs of one model, e.g. 'circuits={ioi: DIR0, pronouns: DIR1}'")
    (called, first), *_ = found.items()
    for name, run in found.items():
        ours, theirs = first.result.checkpoint, run.result.checkpoint
        if ours.sha256 != theirs.sha256:
            raise UserError(
                f"{called} is a run of {ours.label} and {name} one of {theirs.label}, with other weights; circuits are "
                "compared within one model"
            )
    checkpoint = first.load_checkpoint(device, dtype, None)
    masked = MaskedModel(checkpoint.model)
    try:
        loaded = {name: _Loaded(*run.mask_in(masked)) for name, run in found.items()}
        _require_one_basis(loaded)
        transfer = [one for name, run in found.items() for one in _on(name, run, loaded, masked, checkpoint)]
    finally:
        masked.close()
    return Between(
        runs={name: _about(run) for name, run in found.items()},
        overlap=[_shared(one, other, found) for one, other in combinations(found, 2)],
        transfer=transfer,
    )


def one_directory_each(given: Mapping[str, object]) -> dict[str, str]:
    """Circuits as the command line names them. Raises UserError where one is not a single directory."""
    for name, directory in given.items():
        if not isinstance(directory, str):
            raise UserError(f"circuit {name!r} is {directory!r}; give it the directory of one run")
    return {name: str(directory) for name, directory in given.items()}


def _about(run: Run) -> CircuitOf:
    result = run.result
    return CircuitOf(
        directory=str(run.directory),
        data=result.dataset.name,
        ablation=result.mask.ablation,
        kept=result.sparsity.kept,
        total=result.sparsity.total,
    )


def _on(
    name: str, run: Run, loaded: Mapping[str, _Loaded], masked: MaskedModel, checkpoint: Checkpoint
) -> list[Transfer]:
    """All masks on one run's data, under its ablation."""
    data = run.own_data(checkpoint, masked)
    metric: Metric = NLL if data.task is None else LOGIT_DIFF
    found = []
    for other, one in loaded.items():
        ablation = run.ablation_for(one.view, data.calibration, one.kept)
        gates = [None, torch.zeros_like(one.kept), one.kept]
        values = Evaluator(one.view, data.evaluation, ablation, AT_ONCE)(gates, [metric, KL])
        positions = data.evaluation.positions
        draws, means = (
            resampled(values, positions, data.evaluation_documents),
            over_positions(values, positions),
        )
        dense, empty = draws[:, :2, 0].unbind(1)
        told_apart = differ(dense, empty) if metric is LOGIT_DIFF else differ(empty, dense)  # a loss is lower
        found.append(
            Transfer(
                mask=other,
                data=name,
                faithfulness=float(faithfulness_of(*means[:, 0])) if told_apart else None,
                interval=interval_of(faithfulness_of(*draws[..., 0].unbind(1))) if told_apart else None,
                kl=float(means[2, 1]),
                kl_interval=interval_of(draws[:, 2, 1]),
            )
        )
    return found


def _shared(first: str, second: str, runs: Mapping[str, Run]) -> SharedChannels:
    masks = [runs[name].layer_masks for name in (first, second)]
    agreement = Agreement.of(masks)
    return SharedChannels(
        first=first,
        second=second,
        shared=agreement.histogram[2],
        iou=None if agreement.iou is None else agreement.iou.mean,
        chance=None if agreement.chance is None else agreement.chance.mean,
    )


def _require_one_basis(loaded: Mapping[str, _Loaded]) -> None:
    """Raise UserError where masks keep directions of different bases, whose numbers have nothing in common."""
    (name, first), *others = loaded.items()
    for other, one in others:
        if not same_basis(first.view.basis, one.view.basis):
            raise UserError(
                f"{name} keeps {named_basis(first.view.basis)} and {other} keeps {named_basis(one.view.basis)}, which "
                "have nothing in common; circuits are compared in one basis, e.g. basis=channels"
            )
