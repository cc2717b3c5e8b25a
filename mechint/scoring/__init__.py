"""Scoring masks: methods that rank units by what the frozen model shows, without learning."""

from mechint.scoring.act_norm import ActivationNorm
from mechint.scoring.flap import Flap, Wanda
from mechint.scoring.gradient_scores import Fisher, Snip, Taylor
from mechint.scoring.gram_greedy import GramGreedy
from mechint.scoring.integrated_gradients import IntegratedGradients
from mechint.scoring.iterative_fisher import IterativeFisher
from mechint.scoring.magnitude import Magnitude
from mechint.scoring.random_order import RandomOrder
from mechint.scoring.think import Think, ThinkCentered

__all__ = [
    "ActivationNorm",
    "Fisher",
    "Flap",
    "GramGreedy",
    "IntegratedGradients",
    "IterativeFisher",
    "Magnitude",
    "RandomOrder",
    "Snip",
    "Taylor",
    "Think",
    "ThinkCentered",
    "Wanda",
]
