"""Small variants of a model trained from scratch, to compare their masks."""

from mechint.pretraining.architectures import Gpt2Architecture, LlamaArchitecture
from mechint.pretraining.pretrainer import Pretrainer

__all__ = ["Gpt2Architecture", "LlamaArchitecture", "Pretrainer"]
