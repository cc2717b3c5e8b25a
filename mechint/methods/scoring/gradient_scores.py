"""Scores from the gradient of the loss with respect to the gates of the dense model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mechint.methods.method import ScoringMethod
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.gradients import unit_gradients
from mechint.metrics.metric import NLL


@dataclass(kw_only=True)
class GradientScorer(ScoringMethod):
    """Averages something over the gate gradients of the calibration sequences.

    The loss is the next-token negative log-likelihood: the KL from the dense model is at its minimum there, with no
    gradient.
    """

    def score(self, calibration: Evaluator) -> int:
        """One forward and backward pass over all sequences."""
        return self.score_sequences(calibration, torch.arange(len(calibration.batch)))

    def score_sequences(self, calibration: Evaluator, chosen: Tensor) -> int:
        """The same over the sequences with these numbers."""
        masked = calibration.masked
        dense = torch.ones(masked.space.num_channels)
        sums = torch.zeros(self.units.count, dtype=torch.double, device=masked.device)
        for part in chosen.split(calibration.at_once):
            gradients = unit_gradients(self.units, calibration.part_gradients(part, dense, NLL))
            sums += self.of_gradients(gradients.double()).sum(0)
        self._scores = self.of_mean(sums / len(chosen))
        return len(chosen) * calibration.batch.length

    @abstractmethod
    def of_gradients(self, gradients: Tensor) -> Tensor:
        """What is averaged over sequences, [B, U], from their gradients dNLL/dm [B, U]."""

    def of_mean(self, mean: Tensor) -> Tensor:
        """Scores [U] from the mean [U]."""
        return mean


@dataclass(kw_only=True)
class Taylor(GradientScorer):
    """First-order change of the loss when a unit is removed, for K and V alike.

    The mean over sequences of |dNLL/dm| at m = 1; with `signed`, |mean over sequences of dNLL/dm|, in which sequences
    that disagree about a unit cancel. Molchanov et al. 2017; LLM-Pruner (Ma et al. 2023) has the signed one.
    """

    meaning: ClassVar[str] = "change of the loss when its gate closes, to first order"

    signed: bool = False

    def of_gradients(self, gradients: Tensor) -> Tensor:
        """dNLL/dm or its absolute value."""
        return gradients if self.signed else gradients.abs()

    def of_mean(self, mean: Tensor) -> Tensor:
        """The absolute value."""
        return mean.abs()


@dataclass(kw_only=True)
class Fisher(GradientScorer):
    """Empirical Fisher information of a gate, for K and V alike: E over sequences of (dNLL/dm)^2 at m = 1.

    Theis et al. 2018; Fisher pruning of transformers' heads, Kwon et al. 2022.
    """

    meaning: ClassVar[str] = "mean squared gradient of its gate"

    def of_gradients(self, gradients: Tensor) -> Tensor:
        """(dNLL/dm)^2."""
        return gradients.square()


@dataclass(kw_only=True)
class Snip(GradientScorer):
    """Connection sensitivity, for K and V alike: |dNLL/dm * m| at m = 1 over a single batch, divided by its sum.

    Lee et al. 2019.
    """

    meaning: ClassVar[str] = "absolute gradient of its gate on one batch"

    def score(self, calibration: Evaluator) -> int:
        """One forward and backward pass over one batch, drawn from the run's seed."""
        order = torch.randperm(len(calibration.batch), generator=self._generator)
        return self.score_sequences(calibration, order[: calibration.at_once])

    def of_gradients(self, gradients: Tensor) -> Tensor:
        """dNLL/dm."""
        return gradients

    def of_mean(self, mean: Tensor) -> Tensor:
        """|dNLL/dm| / sum |dNLL/dm|."""
        return mean.abs() / mean.abs().sum().clamp_min(torch.finfo(mean.dtype).tiny)
