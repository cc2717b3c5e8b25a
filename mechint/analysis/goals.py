"""What a search asks of a mask, and how near a mask comes to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mechint.circuits.scores import faithfulness_of
from mechint.errors import UserError
from mechint.metrics.metric import KL, LOGIT_DIFF, NLL, Metric
from mechint.results.result import TargetInfo

Kind = Literal["faithfulness", "kl"]

# Who makes up the three means that a quality is computed from, in this order.
MODELS = ("dense", "empty", "masked")


@dataclass(frozen=True)
class Goal:
    """A quality of masks, and the range that it is asked to lie in.

    Faithfulness is that of the loss on running text, where more is better, and that of the logit difference on a task,
    where a circuit that exceeds the dense model by much is as wrong as one that falls short of it.
    """

    asked: TargetInfo

    @classmethod
    def of_search(cls, kind: Kind, value: float, on_task: bool) -> Goal:
        """At most this KL; at least this faithfulness, which on a task is at most as far above 1 as that is below."""
        if kind == "kl":
            return cls(TargetInfo(kind=kind, value=value, metric=KL.name))
        if not on_task:
            return cls(TargetInfo(kind=kind, value=value, metric=NLL.name))
        return cls(TargetInfo(kind=kind, value=value, metric=LOGIT_DIFF.name, highest=2 - value))

    @property
    def metric(self) -> Metric:
        """What the three models are measured by."""
        return next(metric for metric in (KL, NLL, LOGIT_DIFF) if metric.name == self.asked.metric)

    def quality(self, means: Tensor) -> Tensor:
        """The quality of a mask, [...], from the metric's means for the dense, empty and masked model, [..., 3]."""
        dense, empty, masked = means.unbind(-1)
        return masked if self.asked.kind == "kl" else faithfulness_of(dense, empty, masked)

    def reached(self, means: Tensor) -> float:
        """The same for one mask, [3]. Raises UserError where the dense and the empty model are equally good."""
        found = float(self.quality(means))
        if not math.isfinite(found):
            raise UserError(
                "the dense and the empty model are equally good at these data, so that nothing is faithful or not; "
                "use target_kl"
            )
        return found

    def falls_short(self, reached: float) -> bool:
        """Whether it takes more units."""
        low, high = self.asked.bounds
        return reached > high if self.asked.kind == "kl" else reached < low

    def distance(self, reached: float) -> float:
        """How far a quality lies outside of the range; 0 inside."""
        low, high = self.asked.bounds
        return max(low - reached, reached - high, 0.0)
