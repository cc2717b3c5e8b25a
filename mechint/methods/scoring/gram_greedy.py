"""Channels ranked by greedy removal under the exact quadratic error of a whole set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mechint.masking.space import Kind
from mechint.methods.scoring.activation_scorer import ActivationScorer
from mechint.metrics.evaluation import Evaluator


@dataclass(kw_only=True)
class GramGreedy(ActivationScorer):
    """Squared error that a unit adds when units are removed greedily, head by head, so that cancelling ones are seen.

    K: removing the set S of channels of a KV head changes the logits of its query heads by sum_{c in S} q_c k_c. The
    squared error over all query and key positions is 1_S^T M 1_S with M = sum_h (Q_h^T Q_h) o (K^T K), elementwise,
    per sequence and then averaged. Keys are taken mean-free within the sequence, for softmax sees no constant.
    V: the squared error of the layer's output is 1_S^T M 1_S with M = E[y y^T] o (W_O^T W_O) over (query head,
    channel), summed over the pairs of the group's heads. y is the heads' output minus what a removed channel becomes:
    zero, or its mean with ablation=mean, where E[y y^T] is about the covariance.

    Units of several channels are removed as one; `removal_costs` says how the order becomes a score. With only
    the diagonal of M this is ThinK with mean-free keys (Xu et al. 2024).
    """

    meaning: ClassVar[str] = "squared error that its removal adds, in greedy order"

    def score_channels(self, calibration: Evaluator, channels: Tensor) -> int:
        """Observe all sequences once, then remove greedily."""
        constant = calibration.ablation.constant(calibration.masked)
        self._fill = torch.zeros_like(channels) if constant is None else constant.double()
        return super().score_channels(calibration, channels)

    def see_states(self, position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Gram matrices of queries and keys, multiplied, [B, G, C, C]."""
        queries = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # [B, G, R * T, C]
        centred = key - key.mean(2, keepdim=True)
        self._means.add((position, "k"), (queries.mT @ queries) * (centred.mT @ centred))

    def see_heads(self, position: int, heads: Tensor) -> None:
        """Second moments of the heads' outputs within a group, [B, G, R * C, R * C]."""
        fill = self.units.space.view(self._fill, position, "v")[:, None].to(heads)  # [G, 1, C]
        groups = heads.unflatten(2, (len(fill), -1)) - fill  # [B, T, G, R, C]
        outputs = groups.flatten(3).transpose(1, 2)  # [B, G, T, R * C]
        self._means.add((position, "v"), outputs.mT @ outputs / heads.shape[1])

    def key_scores(self, position: int) -> Tensor:
        """Greedy costs of K channels."""
        return self._remove(position, "k", self._means[position, "k"])

    def value_scores(self, position: int) -> Tensor:
        """Greedy costs of V channels."""
        weight = self.output_weight(position)  # [D, G, R, C]
        group, width = weight.shape[2:]
        columns = weight.permute(1, 0, 2, 3).flatten(2)  # [G, D, R * C]
        matrix = self._means[position, "v"] * (columns.mT @ columns)
        blocks = matrix.unflatten(2, (group, width)).unflatten(1, (group, width))  # [G, R, C, R, C]
        return self._remove(position, "v", blocks.sum((1, 3)))

    def _remove(self, position: int, kind: Kind, matrix: Tensor) -> Tensor:
        """Scores [G, C] from M [G, C, C]: the cost of a channel's unit, shared out over the unit's channels."""
        units = self.units.space.view(self.units.of_channel.to(matrix.device), position, kind)  # [G, C]
        local = torch.unique(units, return_inverse=True)[1]
        count = (int(local.max()) + 1) // len(units)  # units per head, numbered head by head
        first = count * torch.arange(len(units), device=local.device)[:, None]
        member = F.one_hot(local - first, count).to(matrix)  # [G, C, units]
        costs = removal_costs(member.mT @ matrix @ member)  # [G, units]
        return (member @ (costs / member.sum(1)).unsqueeze(-1)).squeeze(-1)


def removal_costs(matrix: Tensor) -> Tensor:
    """What each of n units costs, [G, n], when units are removed one by one, always the one that leaves least error.

    The error of a removed set S is 1_S^T M 1_S, M [G, n, n]. What the units add to it in order of removal need not
    rise, as one may cancel the error of another, so it is replaced by the slopes of the greatest convex curve below
    the error: they rise and have the same sum. A ten-thousandth tells equal slopes apart in order of removal.
    """
    heads, n = matrix.shape[:2]
    every = torch.arange(heads, device=matrix.device)
    cross, gone = torch.zeros_like(matrix[:, 0]), torch.zeros_like(matrix[:, 0], dtype=torch.bool)
    order, marginal = torch.empty_like(gone, dtype=torch.long), torch.empty_like(cross)
    for step in range(n):
        rise = (matrix.diagonal(dim1=1, dim2=2) + 2 * cross).masked_fill(gone, torch.inf)
        marginal[:, step], order[:, step] = rise.min(dim=1)
        gone[every, order[:, step]] = True
        cross = cross + matrix[every, order[:, step]]
    place = torch.arange(n, device=matrix.device, dtype=matrix.dtype)
    slopes = convex_slopes(marginal) * (1 + 1e-4 * place / n)
    return torch.empty_like(slopes).scatter_(1, order, slopes)


def convex_slopes(steps: Tensor) -> Tensor:
    """Slopes of the greatest convex curve below the cumulative sums of steps [G, n].

    The slope at i is the maximum over a <= i of the minimum over b >= i of the mean of steps a to b.
    """
    n = steps.shape[1]
    total = F.pad(steps.cumsum(1), (1, 0))
    start = torch.arange(n, device=steps.device)
    length = (start[None, :] - start[:, None] + 1).clamp_min(1)
    means = (total[:, None, 1:] - total[:, :-1, None]) / length  # [G, a, b]
    means = means.masked_fill(start[None, :] < start[:, None], torch.inf)
    lowest = means.flip(2).cummin(2).values.flip(2)  # min over b >= i
    lowest = lowest.masked_fill(start[None, :] < start[:, None], -torch.inf)
    return lowest.cummax(1).values.diagonal(dim1=1, dim2=2)
