"""The mask that the same question in other words gives, beside the run's own."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from mechint.analysis.attempt import Attempt
from mechint.analysis.costs import add_part
from mechint.analysis.preparation import Prepared
from mechint.analysis.rivals import overlap
from mechint.analysis.tasks import right_prompts
from mechint.data.tasks.task import FEWEST, TaskDataset
from mechint.errors import UserError
from mechint.learning.resume import SavedStates
from mechint.loggers import LoggerGroup
from mechint.masking.basis import Basis
from mechint.results.circuit import CircuitInfo
from mechint.results.result import Cost
from mechint.runtime.seeds import seed_everything

if TYPE_CHECKING:
    from mechint.analysis.single import Analysis

log = logging.getLogger(__name__)


def to_learn_on(analysis: Analysis, prepared: Prepared) -> Prepared | None:
    """The same model with paraphrases in the place of calibration prompts; None where that is not asked for.

    There are as many as there are calibration prompts, the task's paraphrases first and others drawn after them, or as
    many as the task has. Raises UserError where it has too few, or where two masks cannot be compared unit by unit.
    """
    task, study, dataset = prepared.data.task, analysis.circuit, analysis.inputs.dataset
    if study is None or not study.paraphrase_iou or task is None:
        return None
    if task.paraphrases is None:
        raise UserError(
            "circuit.paraphrase_iou learns a mask on paraphrases, and there are none; raise "
            "dataset.paraphrase_prompts, or give dataset.paraphrase_path"
        )
    if analysis.recipe.basis.learned:
        raise UserError(
            "circuit.paraphrase_iou compares units, and with basis=learned each mask has directions of its own; use "
            "basis=channels or basis=principal"
        )
    assert isinstance(dataset, TaskDataset), "only tasks have questions"
    checkpoint, wanted = prepared.checkpoint, len(analysis.calibration(prepared))
    found = dataset.paraphrases(
        checkpoint.tokenizer,
        checkpoint.vocab_size,
        checkpoint.max_positions,
        max(dataset.calibration_prompts, dataset.paraphrase_prompts),
    )
    prompts = None if found is None else right_prompts(prepared.masked, found)[:wanted]
    if prompts is None or len(prompts) < FEWEST:
        raise UserError(
            f"circuit.paraphrase_iou learns a mask on paraphrases, and of the task {task.name} the model gets "
            f"{0 if prompts is None else len(prompts)} right, of {FEWEST} needed; leave it out, or give more of them"
        )
    in_channels = replace(prepared, masked=prepared.masked.in_channels())
    return replace(in_channels, data=replace(prepared.data, calibration=prompts))


def compare_with_paraphrases(
    fresh: Analysis,
    paraphrased: Prepared,
    keep: Tensor,
    basis: Basis | None,
    circuit: CircuitInfo,
    cost: Cost,
    attempt: Attempt,
) -> None:
    """Learn a mask on paraphrases, as the run's own was learned, and add to `circuit` what the two share.

    fresh: the run's analysis as it was before it ran. keep: bool [U], the run's mask. basis: of that mask.
    """
    assert circuit.paraphrase is not None, "there are paraphrases"
    started = time.perf_counter()
    folder = attempt.directory / ".paraphrases"
    states = SavedStates(folder, f"{attempt.result.config_digest} paraphrases")
    if not attempt.options.resume or states.newest() is None:
        states.remove()
    log.info("learning a mask on %d paraphrases, to compare with", len(paraphrased.data.calibration))
    told = attempt.result.model_copy()  # where this mask continues is not where the run does
    unseen = replace(attempt, logger=LoggerGroup(), states=states, result=told)
    generator = seed_everything(fresh.seed)
    view = fresh.prepare(paraphrased, generator, basis)
    training, _ = fresh.learn(view, generator, unseen)
    other = fresh.method.pools.select(training.scores.cpu())
    agreement = overlap(fresh.method.units, keep, other)
    circuit.paraphrase.learned_prompts = len(paraphrased.data.calibration)
    circuit.paraphrase.iou = None if agreement.iou is None else agreement.iou.mean
    circuit.paraphrase.chance = None if agreement.chance is None else agreement.chance.mean
    states.remove()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    add_part(cost, "mask of paraphrases", started, training.tokens)
