"""Step 1 of an analysis: a file, directory or hub id becomes a frozen model and its tokenizer."""

from mechint.checkpoints.bundled import bundled_names
from mechint.checkpoints.checkpoint import Checkpoint
from mechint.checkpoints.in_memory import ModelInMemory
from mechint.checkpoints.loader import CheckpointLoader

__all__ = ["Checkpoint", "CheckpointLoader", "ModelInMemory", "bundled_names"]
