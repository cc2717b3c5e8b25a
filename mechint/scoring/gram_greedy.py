"""Channels ranked by greedy removal under the exact quadratic error of a whole set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mechint.masking.masked_model import MaskedModel
from mechint.masking.space import Kind
from mechint.scoring.activation_scorer import ActivationScorer


@dataclass(kw_only=True)
class GramGreedy(ActivationScorer):
    """Marginal squared error of a unit when it is removed greedily, head by head, with cancelling channels
    seen.

    Removing the set S of K channels of KV head g changes its query heads' logits by sum_{c in S} q_c k_c. Its
    squared error over all query and key positions is 1_S^T M 1_S, M = sum_h (Q_h^T Q_h) * (K^T K)
    elementwise, with keys mean-free within the sequence (softmax sees no constant), per sequence, averaged.
    For V, the error of the layer's output is 1_S^T M 1_S with M = E[y y^T] * (W_O^T W_O) over (query head,
    channel), summed over pairs of the group's heads; y is the heads' output minus what a removed channel
    becomes (zero, or its mean with mask.ablation=mean, where E[y y^T] is nearly the covariance). ThinK's
    scores are the diagonals (Xu et al. 2024); the greedy removal is backward selection as in optimal brain
    surgeon's kin.

    Units of several channels are removed as one. See `removal_costs` for the score.
    """

    def score_channels(self, masked: MaskedModel, rows: Tensor, batch_size: int, channels: Tensor) -> int:
        """Observe all rows once, then remove greedily."""
        self._fill = torch.zeros_like(channels) if masked.fill is None else masked.fill.double()
        return super().score_channels(masked, rows, batch_size, channels)

    def see_states(self, position: int, query: Tensor, key: Tensor, value: Tensor) -> None:  # noqa: ARG002
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
        return self._remove(
            position, "v", matrix.unflatten(2, (group, width)).unflatten(1, (group, width)).sum((1, 3))
        )

    def _remove(self, position: int, kind: Kind, matrix: Tensor) -> Tensor:
        """Scores [G, C] from the error matrix [G, C, C]: the cost of a channel's unit, shared out over its channels."""
        units = self.units.space.view(self.units.of_channel.to(matrix.device), position, kind)  # [G, C]
        local = torch.unique(units, return_inverse=True)[1]
        count = (int(local.max()) + 1) // len(units)  # units per head, numbered head by head
        member = F.one_hot(local - count * torch.arange(len(units), device=local.device)[:, None], count).to(
            matrix
        )
        costs = removal_costs(member.mT @ matrix @ member)  # [G, units]
        return (member @ (costs / member.sum(1)).unsqueeze(-1)).squeeze(-1)


def removal_costs(matrix: Tensor) -> Tensor:
    """What each of n units [G, n] costs when they are removed one by one, least error first; error of S:
    1_S^T M 1_S, M [G, n, n].

    The marginal errors in order of removal need not rise (a unit may cancel an earlier one's error), so they
    are replaced by the slopes of the greatest convex curve below the error, which do and have the same sum;
    equal slopes are told apart by a ten-thousandth so that the order of removal stays. Vectorised over G.
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
    """Slopes of the greatest convex curve below the cumulative sums of steps [G, n]: max over a <= i of min over b >= i of mean(a..b)."""
    n = steps.shape[1]
    total = F.pad(steps.cumsum(1), (1, 0))
    start = torch.arange(n, device=steps.device)
    length = (start[None, :] - start[:, None] + 1).clamp_min(1)
    means = (total[:, None, 1:] - total[:, :-1, None]) / length  # [G, a, b]
    means = means.masked_fill(start[None, :] < start[:, None], torch.inf)
    lowest = means.flip(2).cummin(2).values.flip(2)  # min over b >= i
    lowest = lowest.masked_fill(start[None, :] < start[:, None], -torch.inf)
    return lowest.cummax(1).values.diagonal(dim1=1, dim2=2)
