"""The same learning on models whose weights are permuted: what a method finds where nothing was learned."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mechint.analysis.attempt import Attempt
from mechint.analysis.preparation import Prepared
from mechint.learning.resume import SavedStates
from mechint.loggers import LoggerGroup
from mechint.metrics.evaluation import Measured, faithfulness, standard_error
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import compare_means, crossed_mean
from mechint.results.result import NullControl, NullLosses, Permutation
from mechint.runtime.seeds import seed_everything

if TYPE_CHECKING:
    from mechint.analysis.single import Analysis

log = logging.getLogger(__name__)

# A permuted model is informative where its dense loss is below its empty loss by more than so many standard errors.
ERRORS = 2.0


def measure_null(
    analysis: Analysis,
    prepared: Prepared,
    permutations: int,
    recovered: Sequence[float | None],
    attempt: Attempt,
) -> NullControl:
    """The method of an analysis at the same settings on so many models with permuted weights.

    Each takes as long as learning the mask of the model itself. recovered: the share of the KL that each run of the
    real model recovers. The model is left as it was.
    """
    found: list[tuple[Permutation, Measured]] = []
    tokens, started = 0, time.perf_counter()
    matrices = len(block_matrices(prepared.masked.model))
    folders = [attempt.directory / f".permuted_{number}" for number in range(permutations)]
    states = [SavedStates(folder, f"{attempt.result.config_digest} permuted") for folder in folders]
    for number in range(permutations):
        seed, began = analysis.seed + number, time.perf_counter()
        log.info("null control %d of %d: the model with permuted weights", number + 1, permutations)
        if not attempt.options.resume or states[number].newest() is None:
            states[number].remove()
        control = replace(analysis, recipe=copy.deepcopy(analysis.recipe), seed=seed, basis_seed=None)
        told = attempt.result.model_copy()  # where permuted models continue is not where the run does
        unseen = replace(attempt, logger=LoggerGroup(), states=states[number], result=told)
        permuted = Prepared(prepared.checkpoint, prepared.masked.in_channels(), prepared.data)
        with permuted_weights(prepared.masked.model, seed):
            generator = seed_everything(seed)
            permuted = control.prepare(permuted, generator)
            training, permuted = control.learn(permuted, generator, unseen)
            keep = control.method.units.to_channels(control.method.pools.select(training.scores.cpu()))
            measured = attempt.measure(permuted, keep, control.recipe.ablation, control.trainer)
        tokens += training.tokens + 4 * prepared.data.evaluation.size
        found.append((permutation_of(measured, seed, time.perf_counter() - began), measured))
    for folder, saved in zip(folders, states, strict=True):
        saved.remove()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    null = null_control(found, recovered)
    null.matrices, null.tokens, null.seconds = matrices, tokens, time.perf_counter() - started
    return null


def permutation_of(measured: Measured, seed: int, seconds: float) -> Permutation:
    """What one permuted model shows, measured against its own dense outputs."""
    dense, empty, masked = (measured.metrics[name] for name in ("dense", "empty", "masked"))
    losses = {
        f"{name}{end}": measured.metrics[name].get(f"loss{end}") for name in LOSSES for end in ("", "_se")
    }
    gain = empty["loss"] - dense["loss"]
    samples = measured.resampled("loss")
    error = standard_error(samples[:, 1] - samples[:, 0])
    return Permutation(
        seed=seed,
        kl=masked["kl"],
        kl_se=masked.get("kl_se"),
        kl_empty=empty["kl"],
        kl_empty_se=empty.get("kl_se"),
        kl_recovered=kl_recovered(masked["kl"], empty["kl"]),
        kl_recovered_se=measured.kl_recovered_se,
        loss=NullLosses.model_validate(losses),
        gain=gain,
        gain_se=error,
        faithfulness=faithfulness(dense["loss"], empty["loss"], masked["loss"]),
        faithfulness_se=measured.faithfulness_se,
        informative=None if error is None else gain > ERRORS * error,
        seconds=seconds,
    )


LOSSES = ("dense", "empty", "masked")


def null_control(
    found: Sequence[tuple[Permutation, Measured]], recovered: Sequence[float | None]
) -> NullControl:
    """Means over permuted models, beside the share of the KL that runs of the real model recover."""
    permutations = [one for one, _ in found]
    losses = torch.stack([measured.sequences["loss"] for _, measured in found])  # [P, models, M]
    gain, error = crossed_mean((losses[:, 1] - losses[:, 0]).numpy()), permutations[0].gain_se
    if gain.known:  # the mean over positions counts, and the error over permutations and sequences
        error = gain.error
    mean_gain = _mean([one.gain for one in permutations])
    null = NullControl(
        seed=permutations[0].seed,
        kl=_mean([one.kl for one in permutations]),
        kl_sd=_sd([one.kl for one in permutations]),
        kl_empty=_mean([one.kl_empty for one in permutations]),
        kl_recovered=_mean([one.kl_recovered for one in permutations]),
        kl_recovered_sd=_sd([one.kl_recovered for one in permutations]),
        loss=NullLosses(
            **{name: _mean([getattr(one.loss, name) for one in permutations]) for name in LOSSES}
        ),
        gain=mean_gain,
        gain_se=error,
        faithfulness=_mean([one.faithfulness for one in permutations]),
        faithfulness_sd=_sd([one.faithfulness for one in permutations]),
        informative=None if error is None or mean_gain is None else mean_gain > ERRORS * error,
        permutations=permutations,
    )
    here = [one.kl_recovered for one in permutations if one.kl_recovered is not None]
    there = [value for value in recovered if value is not None]
    if here and there:
        effect = compare_means(here, there)
        null.difference, null.difference_p = effect.difference, effect.p
        if effect.low is not None and effect.high is not None:
            null.interval = [effect.low, effect.high]
    return null


def kl_recovered(masked: float | None, empty: float | None) -> float | None:
    """1 - KL of the masked / KL of the empty model: 1 as the dense model, 0 as the empty one; None for KL 0 of that.

    Unlike faithfulness it needs no model that is good at the text.
    """
    return 1 - masked / empty if masked is not None and empty else None


def _mean(values: Sequence[float | None]) -> float | None:
    spread = Spread.of(values)
    return None if spread is None else spread.mean


def _sd(values: Sequence[float | None]) -> float | None:
    spread = Spread.of(values)
    return None if spread is None else spread.sd


@contextmanager
def permuted_weights(model: PreTrainedModel, seed: int) -> Iterator[int]:
    """Permute the entries inside every attention and MLP weight matrix for the time of the block.

    Yields how many matrices there are. Embeddings, the output projection to the vocabulary, biases and norms stay, and
    so do the values that each matrix holds; which entry is where is random. Afterwards every weight is bitwise what it
    was. Only one matrix at a time needs extra memory.
    """
    matrices = block_matrices(model)
    _permute(matrices, seed, undo=False)
    try:
        yield len(matrices)
    finally:
        _permute(matrices, seed, undo=True)


def block_matrices(model: PreTrainedModel) -> list[Tensor]:
    """The weight tensors of two and more dimensions, without those of embeddings and of the output projection."""
    outside = {
        id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    if (head := model.get_output_embeddings()) is not None:
        outside |= {id(parameter) for parameter in head.parameters()}
    return [p.data for p in model.parameters() if p.ndim >= 2 and id(p) not in outside]


def _permute(matrices: list[Tensor], seed: int, undo: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    for matrix in matrices:
        order = torch.randperm(matrix.numel(), generator=generator).to(matrix.device)
        flat = matrix.flatten()
        shuffled = torch.empty_like(flat)
        if undo:
            shuffled[order] = flat
        else:
            shuffled = flat[order]
        matrix.copy_(shuffled.view_as(matrix))
