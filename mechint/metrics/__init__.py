"""Effects of a mask on the model: metrics, their gradients in the gates, agreement of masks, statistics."""

from mechint.metrics.evaluation import Evaluator, Measured, faithfulness, loss_degradation_percent, measure
from mechint.metrics.metric import KL, NLL, TOP1, KlDivergence, Metric, NegativeLogLikelihood, Top1Agreement

__all__ = [
    "KL",
    "NLL",
    "TOP1",
    "Evaluator",
    "KlDivergence",
    "Measured",
    "Metric",
    "NegativeLogLikelihood",
    "Top1Agreement",
    "faithfulness",
    "loss_degradation_percent",
    "measure",
]
