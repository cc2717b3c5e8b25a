"""Learning a mask: the trainer, its steps, and the finishing pass."""

from mechint.learning.recipe import Recipe
from mechint.learning.trainer import MaskTrainer

__all__ = ["MaskTrainer", "Recipe"]
