"""What a run's mask is worth. Every threshold stands here; the glossary of the report prints them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechint.results.result import GRADES, Grade, ModelMetrics, Result, Verdict

# A method whose gates are not the mask, or whose mask goes on changing, has not learned it: gates that stay open, and
# exchanges in a step of the last tenth, as shares of the kept units. Fewer steps than FEW_STEPS are few.
FORCED, UNSETTLED, FEW_STEPS = 0.1, 0.05, 50

# Fewer evaluation tokens than this are few; a p above this does not tell a mask from chance.
FEW_TOKENS, CHANCE = 10_000, 0.05


@dataclass(frozen=True)
class Measure:
    """One way to see how well units do alone. limits: the least that grades nearly all, most and part ask for."""

    name: str
    label: str
    unit: str
    limits: tuple[float, float, float]
    rises: bool = False  # the better, the higher

    def grade(self, value: float) -> Grade:
        """How much of what the dense model does a value stands for."""
        passed = [value >= limit if self.rises else value <= limit for limit in self.limits]
        return GRADES[passed.index(True)] if any(passed) else GRADES[-1]

    def in_words(self) -> str:
        """The limits, for the glossary."""
        sign, scale = ("at least", "at most")[not self.rises], 100 if self.unit == "%" else 1
        limits = ", ".join(f"{scale * limit:g}" for limit in self.limits)
        return f"{self.label} {sign} {limits} {self.unit}".rstrip()


MEASURES = (
    Measure("faithfulness", "faithfulness", "", (0.95, 0.8, 0.5), rises=True),
    Measure("top1_agreement", "same top token", "%", (0.9, 0.75, 0.5), rises=True),
    Measure("kl", "KL", "nats", (0.05, 0.2, 0.7)),
    Measure("loss_rise", "loss above dense", "nats", (0.05, 0.15, 0.5)),
)


def judge(result: Result, history: Sequence[Mapping[str, Any]] = ()) -> Verdict:
    """The verdict on a finished run; history: the lines of metrics.jsonl."""
    kept, kept_by = worst(result, result.metrics.masked)
    removed, removed_by = worst(result, result.metrics.complement)
    chance = result.random_masks
    too_few = chance is not None and 1 / (1 + chance.count) > CHANCE  # to tell any mask from chance
    return Verdict(
        kept=kept,
        kept_by=kept_by,
        removed=removed,
        removed_by=removed_by,
        above_chance=None if chance is None or chance.p is None or too_few else chance.p <= CHANCE,
        not_learned=not_learned(result, history),
    )


def worst(result: Result, model: ModelMetrics) -> tuple[Grade | None, list[str]]:
    """The worst grade over all measures that are known, and which of them give it; None where none can tell."""
    found: list[tuple[Grade, str]] = []
    dense, empty = result.metrics.dense.loss, result.metrics.empty.loss
    values = {"kl": model.kl, "top1_agreement": model.top1_agreement}
    if model.loss is not None and dense is not None:
        values["loss_rise"] = model.loss - dense
        if empty is not None and empty > dense:
            values["faithfulness"] = (empty - model.loss) / (empty - dense)
    for measure in MEASURES:
        value = values.get(measure.name)
        if value is not None and math.isfinite(value):
            found.append((measure.grade(value), measure.label))
    if not found or (model.loss is not None and not math.isfinite(model.loss)):
        return None, []
    grade = max((grade for grade, _ in found), key=GRADES.index)
    return grade, [label for this, label in found if this == grade]


def not_learned(result: Result, history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why the mask is less than what learning arrives at, each a clause; nothing where it is not."""
    steps, kept, gap = result.cost.steps, result.sparsity.kept, result.binarization_gap
    if runs := result.cost.runs:  # each of which has its own verdict
        few = sum(0 < run.steps < FEW_STEPS for run in runs)
        return [f"{few} of {len(runs)} runs took fewer than {FEW_STEPS} steps"] if few else []
    if not steps:
        return []
    reasons = []
    left_open = gap.soft_open if gap and gap.soft_open is not None else None
    if left_open is None and history and (sparsity := history[-1].get("sparsity")) is not None:
        left_open = round((1 - sparsity) * result.sparsity.total)
    if left_open is not None and abs(left_open - kept) > max(1, FORCED * kept):
        reasons.append(
            f"when learning ended {left_open:,} gates were open, and the {kept:,} of the highest scores were taken "
            "(the count was forced)"
        )
    last = [line.get("changed_units") for line in history if line["step"] >= 0.9 * (steps - 1)]
    end = [count for count in last if count is not None]
    exchanged = sum(end) / 2 / len(end) if end else 0
    if exchanged > max(1, UNSETTLED * kept):
        reasons.append(f"each of the last steps still exchanged {exchanged:,.0f} of {kept:,} kept units")
    if steps < FEW_STEPS:
        reasons.append(f"{steps:,} steps are few (fewer than {FEW_STEPS})")
    return reasons
