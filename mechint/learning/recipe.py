"""What is learned, how, and what it is judged by."""

from __future__ import annotations

from dataclasses import dataclass, field

from mechint.errors import UserError
from mechint.masking.ablation import ZERO, Ablation
from mechint.methods.bases import BasisMethod, ChannelBasis
from mechint.methods.method import MakeOptimizer, MaskMethod
from mechint.methods.schedules import Schedule
from mechint.metrics.metric import KL, Metric


@dataclass(kw_only=True)
class Recipe:
    """A mask method and everything that it is learned with.

    objective: the metric that learning and the finishing pass minimise. ablation: what takes the place of
    removed units. basis: the coordinates that units are made of. make_optimizer: takes torch parameter groups; None:
    the one that the method recommends, and so for `schedule`, the share of the target sparsity at a part of the run.
    steps: of learning.

    Raises UserError for settings without meaning.
    """

    method: MaskMethod
    objective: Metric = KL
    ablation: Ablation = ZERO
    basis: BasisMethod = field(default_factory=ChannelBasis)
    make_optimizer: MakeOptimizer | None = None
    schedule: Schedule | None = None
    steps: int = 500

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1")
        if not (self.objective.differentiable and self.objective.minimised):
            raise UserError(
                f"{self.objective.name} is no loss to learn by: that is a metric with a gradient, of which less is "
                "better, as objective=kl"
            )
        self.make_optimizer = self.make_optimizer or type(self.method).make_optimizer
        self.schedule = self.schedule or type(self.basis).schedule or type(self.method).schedule
