"""What scorers have in common that watch the dense model's activations once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mechint.masking.weights import output_projections
from mechint.methods.scoring.scorer import ChannelScorer
from mechint.methods.scoring.statistics import RunningMeans, observe
from mechint.metrics.evaluation import Evaluator


@dataclass(kw_only=True)
class ActivationScorer(ChannelScorer):
    """Scores from running means of activations over one forward pass of the calibration data.

    reads_outputs: whether the scorer needs W_O or the heads' outputs, which not every architecture shows.
    """

    reads_outputs: ClassVar[bool] = True

    def score_channels(self, calibration: Evaluator, channels: Tensor) -> int:
        """Observe all sequences once, then score layer by layer."""
        masked = calibration.masked
        self._means = RunningMeans()
        self._layers = masked.space.layers
        self._projections = output_projections(masked) if self.reads_outputs else []
        tokens = observe(calibration, self.see_states, self._projections, self.see_heads)
        for position in range(len(self._layers)):
            masked.space.view(channels, position, "k").copy_(self.key_scores(position))
            masked.space.view(channels, position, "v").copy_(self.value_scores(position))
        return tokens

    def output_weight(self, position: int) -> Tensor:
        """W_O of a layer, double [D, G, R, C], where R query heads share a KV head."""
        return self._projections[position].by_group(self._layers[position].num_kv_heads).double()

    def see_states(self, position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Take what is needed from a layer's query [B, H, T, C], key [B, G, T, C] and value [B, G, T, C]."""

    def see_heads(self, position: int, heads: Tensor) -> None:
        """Take what is needed from the heads' outputs [B, T, H, C]."""

    @abstractmethod
    def key_scores(self, position: int) -> Tensor:
        """Scores of a layer's K channels, [G, C]."""

    @abstractmethod
    def value_scores(self, position: int) -> Tensor:
        """Scores of a layer's V channels, [G, C]."""
