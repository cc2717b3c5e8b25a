"""What a mask does to the model: losses, their gradients in the gates, agreement of masks, statistics."""

from mechint.metrics.objectives import KlObjective, NllObjective

__all__ = ["KlObjective", "NllObjective"]
