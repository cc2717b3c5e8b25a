"""What a run took, part by part."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mechint.learning.trainer import Training
from mechint.results.result import Cost, CostPart, RunCost
from mechint.results.run_files import RunFiles


def cost_of(training: Training) -> Cost:
    """What a run took."""
    return Cost(
        steps=training.steps,
        batch_size=training.batch_size or None,
        tokens=training.tokens,
        seconds=training.seconds,
        step_seconds=training.step_seconds,
        peak_memory_bytes=training.peak_memory_bytes,
        dense_cache_bytes=training.dense_cache_bytes,
        parts=_parts(training),
    )


def add_part(cost: Cost, name: str, started: float, tokens: int) -> None:
    """Add what a part of a run took that began at a time of `time.perf_counter`; parts of one name are one part."""
    seconds = time.perf_counter() - started
    for part in cost.parts:
        if part.name == name:
            part.seconds, part.tokens = (part.seconds or 0.0) + seconds, part.tokens + tokens
            return
    cost.parts = [*cost.parts, CostPart(name=name, seconds=seconds, tokens=tokens)]


def _parts(training: Training) -> list[CostPart]:
    """Steps or scores, and the finishing pass."""
    done = training.finishing
    finishing = [] if done is None else [CostPart(name="finishing", seconds=done.seconds, tokens=done.tokens)]
    seconds = training.seconds - (0.0 if done is None else done.seconds)
    tokens = training.tokens - (0 if done is None else done.tokens)
    name = "steps" if training.steps else "scores"
    return [CostPart(name=name, seconds=seconds, tokens=tokens), *finishing]


def total_cost(runs: Sequence[RunFiles]) -> Cost:
    """What several runs took together, and each of them."""
    costs = [run.result.cost for run in runs]
    steps, seconds = sum(cost.steps for cost in costs), sum(cost.seconds or 0.0 for cost in costs)
    in_steps = sum((cost.step_seconds or 0.0) * cost.steps for cost in costs)
    names = dict.fromkeys(part.name for cost in costs for part in cost.parts)
    parts = [
        CostPart(
            name=name,
            seconds=sum(part.seconds or 0.0 for cost in costs for part in cost.parts if part.name == name),
            tokens=sum(part.tokens for cost in costs for part in cost.parts if part.name == name),
        )
        for name in names
    ]
    peaks = [cost.peak_memory_bytes for cost in costs if cost.peak_memory_bytes]
    return Cost(
        steps=steps,
        batch_size=None,
        tokens=sum(cost.tokens for cost in costs),
        seconds=seconds,
        step_seconds=in_steps / max(steps, 1),
        parts=parts,
        peak_memory_bytes=max(peaks, default=None),
        dense_cache_bytes=0,
        runs=[
            RunCost(
                name=run.directory.name,
                steps=cost.steps,
                tokens=sum(part.tokens for part in cost.parts),
                seconds=cost.total_seconds,
            )
            for run, cost in zip(runs, costs, strict=True)
        ],
    )
