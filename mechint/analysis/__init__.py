"""From a checkpoint to a measured mask: one run, several seeds, several targets, and tests of what they found."""

from mechint.analysis.chance import Controls
from mechint.analysis.stability import Stability

__all__ = ["Controls", "Stability"]
