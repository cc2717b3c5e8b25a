"""Learning masks: methods, objectives, schedules and the trainer."""

from mechint.learning.annealed_sigmoid import AnnealedSigmoid
from mechint.learning.edge_popup import EdgePopup
from mechint.learning.hard_concrete import HardConcrete
from mechint.learning.leank import LeanK
from mechint.learning.objectives import KlObjective, NllObjective
from mechint.learning.optimizers import NormalizedSGD
from mechint.learning.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CubicSchedule,
    ExponentialSchedule,
    LinearSchedule,
)
from mechint.learning.topk import TopK
from mechint.learning.trainer import MaskTrainer

__all__ = [
    "AnnealedSigmoid",
    "ConstantSchedule",
    "CosineSchedule",
    "CubicSchedule",
    "EdgePopup",
    "ExponentialSchedule",
    "HardConcrete",
    "KlObjective",
    "LeanK",
    "LinearSchedule",
    "MaskTrainer",
    "NllObjective",
    "NormalizedSGD",
    "TopK",
]
