"""Every part of the kinds that shared tests run on: one line each, and a new part's line goes here."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechint.data.tasks import (
    Docstring,
    GenderedPronoun,
    GreaterThan,
    IndirectObject,
    InductionTask,
    SubjectVerbAgreement,
)
from mechint.data.tasks.task import TaskDataset
from mechint.masking import (
    ZERO,
    Ablation,
    CounterfactualAblation,
    MeanAblation,
    MeanPerPositionAblation,
    OptimalAblation,
)
from mechint.methods import (
    ActivationNorm,
    AnnealedSigmoid,
    Conductance,
    EdgePopup,
    Ensemble,
    Fisher,
    Flap,
    GramGreedy,
    HardConcrete,
    IntegratedGradients,
    IterativeFisher,
    LeanK,
    Magnitude,
    NormalizedSGD,
    RandomOrder,
    Snip,
    Taylor,
    Think,
    ThinkCentered,
    TopK,
    Wanda,
)
from mechint.methods.method import LearnedMethod, ScoringMethod
from mechint.metrics import ACCURACY, KL, LOGIT_DIFF, NLL, TOP1, Metric
from mechint.metrics.metric import AccuracySurrogate, LogitDifferenceGap

# Scorers, as small as they come.
SCORERS: dict[str, Callable[..., ScoringMethod]] = {
    "random": RandomOrder,
    "magnitude": Magnitude,
    "act_norm": ActivationNorm,
    "think": Think,
    "think_centered": ThinkCentered,
    "gram_greedy": GramGreedy,
    "wanda": Wanda,
    "flap": Flap,
    "taylor": Taylor,
    "fisher": Fisher,
    "snip": Snip,
    "integrated_gradients": partial(IntegratedGradients, path_steps=2),
    "conductance": partial(Conductance, path_steps=2),
    "iterative_fisher": partial(IterativeFisher, stages=3, sequences_per_stage=2),
}

# Learners, each with an optimizer for a few steps on a tiny model.
_sgd, _adam = partial(NormalizedSGD, lr=0.1), partial(torch.optim.Adam, lr=0.1)
LEARNERS: dict[str, tuple[Callable[[], LearnedMethod], Callable[..., torch.optim.Optimizer]]] = {
    "topk": (partial(TopK, finishing_trials=0), _sgd),
    "hard_concrete": (HardConcrete, partial(torch.optim.AdamW, lr=0.1)),
    "annealed_sigmoid": (AnnealedSigmoid, _adam),
    "leank": (LeanK, _adam),
    "edge_popup": (EdgePopup, _adam),
    "ensemble": (partial(Ensemble, finishing_trials=0, start_sequences=2), _sgd),
    "topk_from_integrated_gradients": (
        partial(TopK, finishing_trials=0, start_from="integrated_gradients", start_sequences=2),
        _sgd,
    ),
}

# What metrics must be: from log probabilities of the masked and the dense model, double [..., V], and the right and the
# wrong next token, [...]. Autograd through it is what a metric's gradient must be.
Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _of(log_probabilities: Tensor, tokens: Tensor) -> Tensor:
    return log_probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _preference(logs: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    return _of(logs, right) - _of(logs, wrong)


METRICS: dict[Metric, Formula] = {
    KL: lambda masked, dense, right, wrong: (dense.exp() * (dense - masked)).sum(-1),
    NLL: lambda masked, dense, right, wrong: -_of(masked, right),
    TOP1: lambda masked, dense, right, wrong: (masked.argmax(-1) == dense.argmax(-1)).double(),
    LOGIT_DIFF: lambda masked, dense, right, wrong: _preference(masked, right, wrong),
    ACCURACY: lambda masked, dense, right, wrong: (_preference(masked, right, wrong) > 0).double(),
    LogitDifferenceGap(): lambda masked, dense, right, wrong: (
        _preference(masked, right, wrong) - _preference(dense, right, wrong)
    ).abs(),
    AccuracySurrogate(): lambda masked, dense, right, wrong: torch.nn.functional.softplus(
        -_preference(masked, right, wrong)
    ),
}

# What an ablation must put in, [G, T, C] or what broadcasts to it: from keys or values [B, G, T, C] of
# the calibration sequences, and those [G, T, C] of the paired prompt.
Fills = Callable[[Tensor, Tensor], Tensor]

ABLATIONS: dict[Ablation, Fills] = {
    ZERO: lambda calibration, paired: torch.zeros(()),
    MeanAblation(): lambda calibration, paired: calibration.mean((0, 2)).unsqueeze(1),
    MeanPerPositionAblation(): lambda calibration, paired: calibration.mean(0),
    CounterfactualAblation(): lambda calibration, paired: paired,
    OptimalAblation(): lambda calibration, paired: calibration.mean((0, 2)).unsqueeze(1),  # before it learns
}

TASKS: list[type[TaskDataset]] = [
    IndirectObject,
    GreaterThan,
    SubjectVerbAgreement,
    GenderedPronoun,
    Docstring,
    InductionTask,
]


def named(part: Any) -> str:
    """The name of a metric, an ablation or a task, for the test's own."""
    return str(part.name)
