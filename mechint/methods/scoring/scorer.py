"""Scores of single channels made comparable and summed into units."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.space import KINDS
from mechint.masking.units import Units
from mechint.methods.method import MaskMethod, ScoringMethod
from mechint.metrics.evaluation import Evaluator

Normalise = Literal["none", "zscore"]


@dataclass(kw_only=True)
class ChannelScorer(ScoringMethod):
    """A method that scores every channel; a unit's score is the sum over its channels.

    normalise: how scores of different layers, and of K and V, become comparable before units compete. `zscore`
    standardises them within every layer and kind (FLAP, An et al. 2023). `none` leaves them; then scores of K (of
    attention logits) and of V (of outputs) share no scale, and on real models one of the two loses nearly all its
    units, which is worse than random.

    Raises UserError for an unknown way to normalise.
    """

    normalise: Normalise = "zscore"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalise not in get_args(Normalise):
            choices = ", ".join(get_args(Normalise))
            raise UserError(f"mask.normalise={self.normalise} is not known; use one of {choices}")

    def score(self, calibration: Evaluator) -> int:
        """Score every channel, then the units; return how many tokens went through the model."""
        masked = calibration.masked
        channels = torch.zeros(masked.space.num_channels, dtype=torch.double, device=masked.device)
        tokens = self.score_channels(calibration, channels)
        self._scores = combine(self.units, sum_by_kind(self.units, channels), self.normalise)
        return tokens

    @abstractmethod
    def score_channels(self, calibration: Evaluator, channels: Tensor) -> int:
        """Write the scores of all channels into `channels` [N]; return how many tokens went through the model."""


def scores_of(
    scorer: ScoringMethod, method: MaskMethod, calibration: Evaluator, sequences: int
) -> tuple[Tensor, int]:
    """The scores [U] that a scorer gives another method's units on the first calibration sequences, and the tokens that
    went through the model.
    """
    scorer.units, scorer.pools, scorer.allowed = method.units, method.pools, method.allowed
    scorer.start(calibration.masked.device, torch.Generator().manual_seed(0))
    tokens = scorer.score(replace(calibration, batch=calibration.batch[:sequences]))
    return scorer.scores(), tokens


def sum_by_kind(units: Units, channels: Tensor) -> Tensor:
    """Channel scores [N] summed over each unit's K channels and over its V channels, [2, U]."""
    places = (units.space.labels()["kind"].to(channels.device), units.of_channel.to(channels.device))
    return channels.new_zeros(len(KINDS), units.count).index_put_(places, channels, accumulate=True)


def combine(units: Units, by_kind: Tensor, normalise: Normalise) -> Tensor:
    """Unit scores [U] from the scores [2, U] of their K and V parts, each normalised within its layer."""
    total = torch.zeros_like(by_kind[0])
    layers = units.layer.to(by_kind.device)
    for scores, has_kind in zip(by_kind, (units.has_key, units.has_value), strict=True):
        for layer in range(len(units.space.layers)):
            here = has_kind.to(layers.device) & (layers == layer)
            total[here] += standardised(scores[here]) if normalise == "zscore" else scores[here]
    return total


def standardised(scores: Tensor) -> Tensor:
    """Scores of one layer and kind with mean 0 and standard deviation 1; where all are equal, all 0."""
    return (scores - scores.mean()) / scores.std(correction=0).clamp_min(torch.finfo(scores.dtype).tiny)
