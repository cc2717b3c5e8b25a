"""Learning a mask: the trainer, its steps and optimizers, and the finishing pass."""

from mechint.learning.optimizers import NormalizedSGD
from mechint.learning.trainer import MaskTrainer

__all__ = ["MaskTrainer", "NormalizedSGD"]
