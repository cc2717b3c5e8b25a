"""Gates: what a run must reach to count as a success, fixed before it begins."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from mechint.errors import UserError
from mechint.results.circuit import GateResult
from mechint.results.result import Result, Verdict

# Short names of numbers in result.json; any other number there goes by its own path, e.g. metrics.masked.kl.
NUMBERS = {
    "faithfulness": ("circuit.faithfulness", "faithfulness"),
    "completeness": ("circuit.completeness",),
    "cpr": ("circuit.cpr.value",),
    "cmd": ("circuit.cmd.value",),
    "kl": ("circuit.masked.kl", "metrics.masked.kl"),
    "random_faithfulness": ("random_masks.logit_diff_faithfulness_mean", "random_masks.faithfulness_mean"),
    "random_p": ("random_masks.p",),
    "seed_iou": ("stability.iou.mean",),
    "paraphrase_transfer": ("circuit.paraphrase.faithfulness",),
    "paraphrase_iou": ("circuit.paraphrase.iou",),
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Gate:
    """One condition, e.g. `faithfulness >= 0.9`."""

    wording: str
    paths: tuple[str, ...]
    holds: Callable[[float, float], bool]
    bound: float

    @classmethod
    def parse(cls, wording: object) -> Gate:
        """A gate from its wording. Raises UserError where it is none, or names no number of result.json."""
        found = re.fullmatch(r"\s*([\w.]+)\s*(>=|<=|>|<)\s*([-+\d.eE]+)\s*", str(wording))
        try:
            bound = float(found[3]) if found else None
        except ValueError:
            bound = None
        if found is None or bound is None:
            raise UserError(
                f"gate {str(wording)!r} is not understood; write for example 'faithfulness >= 0.9'"
            )
        name = found[1]
        if name not in NUMBERS and not _is_number(name):
            raise UserError(
                f"gate {str(wording)!r}: there is no number {name!r}; use one of {', '.join(NUMBERS)}, or a path in "
                "result.json, e.g. metrics.masked.kl"
            )
        return cls(f"{name} {found[2]} {found[3]}", NUMBERS.get(name, (name,)), COMPARISONS[found[2]], bound)

    def judge(self, result: Result) -> GateResult:
        """Whether a finished run passes; a number that was not measured fails."""
        # On a task the first number counts or none: the loss's faithfulness is another one than the logit difference's.
        paths = self.paths if result.circuit is None else self.paths[:1]
        value = next((v for path in paths if (v := _number(result, path)) is not None), None)
        passed = value is not None and self.holds(value, self.bound)
        return GateResult(gate=self.wording, value=value, passed=passed)


def parse_gates(wordings: object) -> list[Gate]:
    """The gates of a configuration. Raises UserError for what is no list of gates."""
    if isinstance(wordings, str) or not isinstance(wordings, Sequence):
        raise UserError("gates must be a list, e.g. 'gates=[\"faithfulness >= 0.9\"]'")
    return [Gate.parse(wording) for wording in wordings]


def judge_gates(result: Result, wordings: object) -> None:
    """Add to a finished run's verdict how its gates went."""
    gates = parse_gates(wordings or [])
    if not gates:
        return
    judged = [gate.judge(result) for gate in gates]
    verdict = result.verdict or Verdict()
    verdict.gates, verdict.overall = judged, "GO" if all(gate.passed for gate in judged) else "NO_GO"
    result.verdict = verdict


def _number(result: Result, path: str) -> float | None:
    """The number at a path; None where it is not there."""
    node: Any = result
    for name in path.split("."):
        node = node.get(name) if isinstance(node, dict) else getattr(node, name, None)
    return float(node) if isinstance(node, (int, float)) and not isinstance(node, bool) else None


def _is_number(path: str) -> bool:
    """Whether a path of dots ends at a number in the sections of result.json."""
    kind: Any = Result
    for name in path.split("."):
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
        if name not in fields:
            return False
        annotation = fields[name].annotation
        options = get_args(annotation) or (annotation,)
        kind = next((option for option in options if option is not type(None)), None)
    return kind in (int, float)
