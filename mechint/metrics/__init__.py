"""Effects of a mask on the model: metrics, their gradients in the gates, agreement of masks, statistics."""

from mechint.metrics.evaluation import Evaluator, Measured, faithfulness, loss_degradation_percent, measure
from mechint.metrics.metric import (
    ACCURACY,
    KL,
    LOGIT_DIFF,
    NLL,
    TOP1,
    Accuracy,
    AccuracySurrogate,
    KlDivergence,
    LogitDifference,
    LogitDifferenceGap,
    Metric,
    NegativeLogLikelihood,
    Top1Agreement,
)

__all__ = [
    "ACCURACY",
    "KL",
    "LOGIT_DIFF",
    "NLL",
    "TOP1",
    "Accuracy",
    "AccuracySurrogate",
    "Evaluator",
    "KlDivergence",
    "LogitDifference",
    "LogitDifferenceGap",
    "Measured",
    "Metric",
    "NegativeLogLikelihood",
    "Top1Agreement",
    "faithfulness",
    "loss_degradation_percent",
    "measure",
]
