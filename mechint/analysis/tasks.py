"""Prompts that the dense model gets right: those that a circuit can be found for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from mechint.data import TokenData
from mechint.data.batch import Batch
from mechint.data.tasks.task import FEWEST
from mechint.data.token_data import digest_of_prompts
from mechint.errors import UserError
from mechint.masking import MaskedModel
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.metric import ACCURACY
from mechint.results.circuit import TaskInfo

log = logging.getLogger(__name__)

AT_ONCE = 16

# Where more families than these lose a part of their prompts, a reader is told.
MOST_HALVED = 0.1


def solved(data: TokenData, masked: MaskedModel) -> TokenData:
    """The data without the prompts that the dense model gets wrong; running text as it is.

    Raises UserError where the model cannot do the task.
    """
    task = data.task
    if task is None:
        return data
    sides = {"evaluation": data.evaluation, "calibration": data.calibration}
    if task.paraphrases is not None:
        sides["paraphrase"] = task.paraphrases
    accuracy: dict[str, float] = {}
    left: dict[str, Batch] = {}
    for side, batch in sides.items():
        left[side] = right_prompts(masked, batch)
        accuracy[side] = len(left[side]) / len(batch)
        if side == "evaluation" and accuracy[side] < task.needed_accuracy:
            raise UserError(
                f"the model cannot do the task {task.name}: it prefers the right answer in {accuracy[side]:.0%} of "
                f"{len(batch)} evaluation prompts, and {task.needed_accuracy:.0%} are needed (guessing: 50%); use "
                "another task or model, or lower dataset.needed_accuracy"
            )
        if side != "paraphrase" and len(left[side]) < FEWEST:
            raise UserError(
                f"the model gets only {len(left[side])} of {len(batch)} {side} prompts of the task {task.name} right, "
                f"and it takes {FEWEST}; raise dataset.{side}_prompts"
            )
    lost = {side: len(batch) - len(left[side]) for side, batch in sides.items()}
    log.info(
        "task %s: the dense model is right in %s",
        task.name,
        ", ".join(f"{share:.1%} of {len(sides[side])} {side} prompts" for side, share in accuracy.items()),
    )
    told = ", ".join(f"{count} of {len(sides[side])} on the {side} side" for side, count in lost.items())
    paraphrases = left.get("paraphrase")
    if paraphrases is not None and len(paraphrases) < 2:
        paraphrases = None
    return replace(
        data,
        calibration=left["calibration"],
        evaluation=left["evaluation"],
        evaluation_digest=digest_of_prompts(left["evaluation"]),
        evaluation_documents=left["evaluation"].families,
        notes=(
            *data.notes,
            *halved_note(sides, left),
            f"prompts that the dense model gets wrong are left out: {told}",
        ),
        task=replace(task, paraphrases=paraphrases, accuracy=accuracy, left_out=lost),
    )


def halved_note(sides: Mapping[str, Batch], left: Mapping[str, Batch]) -> tuple[str, ...]:
    """That many families of prompts have lost a part of themselves, so that answers may be out of balance."""
    found = []
    for side, batch in sides.items():
        families, kept = batch.families, left[side].families
        if families is None or kept is None:
            continue
        before, after = Counter(families.tolist()), Counter(kept.tolist())
        several = [family for family, size in before.items() if size > 1]
        halved = sum(0 < after[family] < before[family] for family in several)
        if several and halved / len(several) > MOST_HALVED:
            found.append(f"{halved / len(several):.0%} of {len(several)} on the {side} side")
    if not found:
        return ()
    return (
        "families of prompts that are versions of each other, such as both orders of two names, of which the dense "
        f"model gets only some right: {', '.join(found)}; the answers of those that are left may be out of balance",
    )


def right_prompts(masked: MaskedModel, batch: Batch) -> Batch:
    """The prompts that the dense model gets right."""
    right = Evaluator(masked, batch, at_once=AT_ONCE)([None], [ACCURACY])[0, 0] > 0.5
    return batch[right.nonzero().squeeze(1)]


def task_info(data: TokenData) -> TaskInfo | None:
    """What result.json says of a task; None for running text."""
    task = data.task
    if task is None:
        return None
    prompts = {"calibration": len(data.calibration), "evaluation": len(data.evaluation)}
    if task.paraphrases is not None:
        prompts["paraphrase"] = len(task.paraphrases)
    return TaskInfo(
        name=task.name,
        prompts=prompts,
        accuracy=task.accuracy or {},
        left_out=task.left_out or {},
        example=task.example,
    )
