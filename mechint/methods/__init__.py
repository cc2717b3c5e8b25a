"""Mask methods: those that learn, those that only score, and sparsity schedules."""

from mechint.methods.bases import ChannelBasis, LearnedBasis, PrincipalBasis
from mechint.methods.learned.annealed_sigmoid import AnnealedSigmoid
from mechint.methods.learned.edge_popup import EdgePopup
from mechint.methods.learned.ensemble import Ensemble
from mechint.methods.learned.hard_concrete import HardConcrete
from mechint.methods.learned.leank import LeanK
from mechint.methods.learned.topk import TopK
from mechint.methods.optimizers import NormalizedSGD
from mechint.methods.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CubicSchedule,
    ExponentialSchedule,
    LinearSchedule,
)
from mechint.methods.scoring.act_norm import ActivationNorm
from mechint.methods.scoring.conductance import Conductance
from mechint.methods.scoring.energy import Energy
from mechint.methods.scoring.flap import Flap, Wanda
from mechint.methods.scoring.gradient_scores import Fisher, Snip, Taylor
from mechint.methods.scoring.gram_greedy import GramGreedy
from mechint.methods.scoring.integrated_gradients import IntegratedGradients
from mechint.methods.scoring.iterative_fisher import IterativeFisher
from mechint.methods.scoring.magnitude import Magnitude
from mechint.methods.scoring.random_order import RandomOrder
from mechint.methods.scoring.think import Think, ThinkCentered

__all__ = [
    "ActivationNorm",
    "AnnealedSigmoid",
    "ChannelBasis",
    "Conductance",
    "ConstantSchedule",
    "CosineSchedule",
    "CubicSchedule",
    "EdgePopup",
    "Energy",
    "Ensemble",
    "ExponentialSchedule",
    "Fisher",
    "Flap",
    "GramGreedy",
    "HardConcrete",
    "IntegratedGradients",
    "IterativeFisher",
    "LeanK",
    "LearnedBasis",
    "LinearSchedule",
    "Magnitude",
    "NormalizedSGD",
    "PrincipalBasis",
    "RandomOrder",
    "Snip",
    "Taylor",
    "Think",
    "ThinkCentered",
    "TopK",
    "Wanda",
]
