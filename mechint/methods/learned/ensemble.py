"""A learned mask and two estimates of what units are worth, averaged by rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechint.masking.units import Selection
from mechint.methods.learned.topk import TopK
from mechint.methods.scoring.gradient_scores import Fisher
from mechint.methods.scoring.integrated_gradients import IntegratedGradients
from mechint.methods.scoring.scorer import scores_of
from mechint.metrics.evaluation import Evaluator


@dataclass(kw_only=True)
class Ensemble(TopK):
    """The mean rank of a unit among learned scores, integrated gradients and Fisher information.

    Learning is as in `topk`; the estimates are made beforehand, on the first `start_sequences` calibration sequences,
    and meet the learned scores at the end. Averages of ranks won the benchmark of arXiv 2510.06811.
    """

    @property
    def selection(self) -> Selection:
        """Two of the three estimates have no sign."""
        return "rank"

    def look(self, calibration: Evaluator) -> int:
        """The two estimates, and what `topk` starts from."""
        tokens = super().look(calibration)
        self._estimates: list[Tensor] = []
        for scorer in (IntegratedGradients(), Fisher()):
            found, seen = scores_of(scorer, self, calibration, self.start_sequences)
            self._estimates.append(found)
            tokens += seen
        return tokens

    def final_scores(self) -> Tensor:
        """Minus the mean rank [U]; the best unit of all three has 0."""
        ranks = [self.pools.ranks(scores).float() for scores in (self.scores(), *self._estimates)]
        return -torch.stack(ranks).mean(0)
