"""The finishing pass: exchanges of units that are tried out, and kept only where the selection KL falls."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechint.learning.dense_outputs import DenseOutputs
from mechint.learning.objectives import kl_per_position
from mechint.masking.masked_model import MaskedModel
from mechint.masking.units import Pools, Units

# How far removed units are opened when their worth is estimated, and how many of the best are tried on each side.
AJAR = 0.3
WIDTH = 8


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
        start, size, turn = keep, max(1, int(keep.sum()) // 8), 0
        value, gradients = self._values(keep)
        paired: set[tuple[int, int]] = set()
        for _ in range(self.trials):
            if size > 2:
                proposal = self._swap(keep, value, size, 0)
            else:  # the fine end: cancelling pairs first, then two or one at a time
                proposal = self._cancelling(keep, value, gradients, paired)
                if proposal is None:
                    proposal = self._swap(keep, value, 2 - turn % 2, turn // 2)
                    turn += 1
            if proposal is None:
                break
            kl = self.kl(proposal)
            if kl < best:
                keep, best, turn = proposal, kl, 0
                value, gradients = self._values(keep)
            elif size > 2:
                size = size // 2
        return Finishing(keep, before, best, self._tokens, int((keep & ~start).sum()))

    def _values(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """What each unit is worth to first order, [U], and the kept units' gradients by sequence, [rows, U].

        Removed units are judged with all of them a little open: two that only work one after the other, each closed,
        would both look worthless.
        """
        gradients = self.sequence_gradients(keep.float())
        opened = self.sequence_gradients(keep.float() + AJAR * (~keep).float())
        return -torch.where(keep, gradients.mean(0), opened.mean(0)), gradients

    def _swap(self, keep: Tensor, value: Tensor, size: int, turn: int) -> Tensor | None:
        """Exchange the `size` least valuable kept units for the most valuable removed ones of the same pool.

        `turn` walks through other pairs, the best few of both sides first. None when no unit can be exchanged.
        """
        lowest = torch.argsort(torch.where(keep, value, torch.inf), stable=True)[: int(keep.sum())]
        highest = torch.argsort(torch.where(keep, -torch.inf, value), descending=True, stable=True)
        highest = highest[: int((~keep).sum())]
        proposal, done = keep.clone(), 0
        for out in lowest[turn // WIDTH :].tolist():
            inside = highest[turn % WIDTH :]
            inside = inside[(self._pool[inside] == self._pool[out]) & ~proposal[inside]]
            if len(inside):
                proposal[out], proposal[inside[0]] = False, True
                done += 1
            if done == size:
                break
        return proposal if done else None

    def _cancelling(
        self, keep: Tensor, value: Tensor, gradients: Tensor, tried: set[tuple[int, int]]
    ) -> Tensor | None:
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
            free = ~keep & (self._pool == self._pool[first])
            if int(free.sum()) < 2:
                return None
            best = torch.argsort(torch.where(free, value, -torch.inf), descending=True, stable=True)
            proposal[best[:2]] = True
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

    def sequence_gradients(self, gate: Tensor) -> Tensor:
        """Gradient of the mean KL at gates [U], for each selection row on its own, [rows, U]."""
        parts = []
        for chosen in torch.arange(len(self.rows)).split(self.batch_size):
            tokens = self.rows[chosen, :-1].to(self.masked.device)
            gates = gate.expand(len(chosen), -1).clone().requires_grad_()  # [B, U]
            logits = self.masked.logits(tokens, self.units.to_channels(gates))
            kl_per_position(self._dense(chosen), logits).mean(1).sum().backward()
            assert gates.grad is not None
            parts.append(gates.grad)
            self._tokens += tokens.numel()
        return torch.cat(parts)
