"""The finishing pass: exchanges of units that are tried out, and kept only where the selection KL falls."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechint.learning.dense_outputs import DenseOutputs
from mechint.learning.objectives import kl_per_position
from mechint.masking.masked_model import MaskedModel
from mechint.masking.units import Pools, Units


@dataclass
class Finishing:
    """What a finishing pass did.

    kl_before, kl_after: KL(dense || masked) on the selection rows, nats per token. tokens: tokens that went through the
    model, forward only or forward and backward. exchanged: units that were put in place of others.
    """

    keep: Tensor
    kl_before: float
    kl_after: float
    tokens: int = 0
    exchanged: int = 0


@dataclass
class Exchange:
    """Local search over hard masks of a fixed count, on rows that the learning steps did not see.

    The gradient at the current mask estimates to first order what each unit is worth. The least valuable kept units
    are exchanged for the most valuable removed ones, several at a time while that helps, then fewer; an exchange
    stays only if the KL measured on all selection rows falls, so the result is never worse there. Kept units that
    cancel each other look vital one by one: pairs of one head whose gradients are opposite in every sequence are
    tried for removal together.
    """

    masked: MaskedModel
    units: Units
    pools: Pools
    rows: Tensor
    batch_size: int
    trials: int
    _tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._dense = DenseOutputs(self.masked, self.rows, 2**30)
        self._pool = self.pools.of_unit.to(self.masked.device)

    def run(self, keep: Tensor) -> Finishing:
        """Improve a hard mask keep, bool [U]."""
        before = best = self.kl(keep)
        start, left, size = keep, self.trials, max(1, int(keep.sum()) // 8)
        gradients = self.sequence_gradients(keep)
        paired: set[tuple[int, int]] = set()
        skip = 0
        while left > 0 and keep.any() and not keep.all():
            proposal = self._cancelling(keep, gradients, paired) if size == 1 else None
            if proposal is None:
                proposal = self._swap(keep, gradients.mean(0), size, skip)
            if proposal is None:
                break
            left -= 1
            kl = self.kl(proposal)
            if kl < best:
                keep, best, skip = proposal, kl, 0
                gradients = self.sequence_gradients(keep)
            elif size > 1:
                size = size // 2
            else:
                skip += 1
        exchanged = int((keep & ~start).sum())
        return Finishing(keep, before, best, self._tokens, exchanged)

    def _swap(self, keep: Tensor, gradient: Tensor, size: int, skip: int) -> Tensor | None:
        """Exchange `size` units; `skip` leaves out pairs that were tried before. None when there is nothing left.

        Units are exchanged inside their pool, so every pool keeps its count.
        """
        value = -gradient
        lowest = torch.argsort(torch.where(keep, value, torch.inf), stable=True)[: int(keep.sum())]
        highest = torch.argsort(torch.where(keep, -torch.inf, value), descending=True, stable=True)
        highest = highest[: int((~keep).sum())]
        width = 8  # single exchanges walk through the best few of both sides
        if size == 1:
            lowest, highest = lowest[skip // width :], highest[skip % width :]
        proposal, done = keep.clone(), 0
        for out in lowest.tolist():
            inside = highest[self._pool[highest] == self._pool[out]]
            inside = inside[~proposal[inside]]
            if len(inside) == 0 or value[inside[0]] <= value[out] - self._slack(size, value):
                continue
            proposal[out], proposal[inside[0]] = False, True
            done += 1
            if done == size:
                return proposal
        return proposal if done else None

    @staticmethod
    def _slack(size: int, value: Tensor) -> float:
        """Single exchanges may look bad to first order: curvature is what the estimate does not see."""
        return float(value.abs().max()) if size == 1 else 0.0

    def _cancelling(self, keep: Tensor, gradients: Tensor, tried: set[tuple[int, int]]) -> Tensor | None:
        """Drop the most opposite pair of kept units of one head that was not tried, and add the two best others."""
        norms = gradients.square().sum(0)  # [U]
        gram = gradients.T @ gradients  # [U, U]
        together = (norms[:, None] + norms[None, :] + 2 * gram) / (norms[:, None] + norms[None, :] + 1e-30)
        layer, head = self.units.layer.to(keep.device), self.units.head.to(keep.device)
        same = (layer[:, None] == layer[None, :]) & (head[:, None] == head[None, :])
        same &= (self.units.has_key[:, None] == self.units.has_key[None, :]).to(keep.device)
        same &= (self._pool[:, None] == self._pool[None, :]) & keep[:, None] & keep[None, :]
        together = torch.where(torch.triu(same, 1), together, torch.inf)
        for index in torch.argsort(together.flatten())[:16].tolist():
            first, second = divmod(index, len(keep))
            if together[first, second] > 0.05:
                return None
            if (first, second) in tried:
                continue
            tried.add((first, second))
            proposal = keep.clone()
            proposal[[first, second]] = False
            value = torch.where(keep | (self._pool != self._pool[first]), torch.inf, gradients.mean(0))
            if int(value.isfinite().sum()) < 2:
                return None
            proposal[torch.argsort(value, stable=True)[:2]] = True
            return proposal
        return None

    @torch.no_grad()
    def kl(self, keep: Tensor) -> float:
        """KL(dense || masked) over all selection rows, nats per token."""
        gates = self.units.to_channels(keep.float())
        total = 0.0
        for chosen in torch.arange(len(self.rows)).split(self.batch_size):
            tokens = self.rows[chosen, :-1].to(self.masked.device)
            total += kl_per_position(self._dense(chosen), self.masked.logits(tokens, gates)).sum().item()
            self._tokens += tokens.numel()
        return total / self.rows[:, 1:].numel()

    def sequence_gradients(self, keep: Tensor) -> Tensor:
        """Gradient of the mean KL with respect to every unit, for each selection row on its own, [rows, U]."""
        parts = []
        for chosen in torch.arange(len(self.rows)).split(self.batch_size):
            tokens = self.rows[chosen, :-1].to(self.masked.device)
            gates = keep.float().expand(len(chosen), -1).clone().requires_grad_()  # [B, U]
            logits = self.masked.logits(tokens, self.units.to_channels(gates))
            kl_per_position(self._dense(chosen), logits).mean(1).sum().backward()
            assert gates.grad is not None
            parts.append(gates.grad)
            self._tokens += tokens.numel()
        return torch.cat(parts)
