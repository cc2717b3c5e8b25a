"""The finishing pass: exchanges of units that are tried out, and kept only where the selection KL falls."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechint import distributed
from mechint.learning.dense_outputs import DenseOutputs
from mechint.learning.objectives import kl_per_position
from mechint.masking.masked_model import MaskedModel
from mechint.masking.units import Pools, Units

# How far removed units are opened when their worth is estimated, and how many of the best are tried on each side.
AJAR = 0.3
WIDTH = 8

# Two gradients cancel if this little of their squared norms is left in the squared norm of their sum.
OPPOSITE = 0.05


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
    tried for removal together. token_limit: no exchange is tried that could take more tokens through the model in all.
    """

    masked: MaskedModel
    units: Units
    pools: Pools
    rows: Tensor
    batch_size: int
    trials: int
    dense_bytes: int = 2**30
    token_limit: int | None = None
    _tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._dense = DenseOutputs(self.masked, self.rows, self.dense_bytes)
        self._pool = self.pools.of_unit.to(self.masked.device)
        places = torch.stack([self.units.layer, self.units.head, self.units.has_value.long()], dim=1)
        place = torch.unique(places, dim=0, return_inverse=True)[1]
        order = torch.argsort(place, stable=True).to(self.masked.device)
        self._heads = order.split(torch.bincount(place).tolist())

    def run(self, keep: Tensor) -> Finishing:
        """Improve a hard mask keep, bool [U]."""
        before = best = self.kl(keep)
        start, size, turn = keep, max(1, int(keep.sum()) // 8), 0
        value, pairs = self._values(keep)
        tried: set[tuple[int, int]] = set()
        for _ in range(self.trials):
            if not self._affordable():
                break
            untried = [pair for pair in pairs if pair not in tried]
            if size > 2:
                proposal = self._swap(keep, value, size, 0)
            elif untried:  # the fine end: cancelling pairs first, then two or one at a time
                tried.add(untried[0])
                proposal = self._without_pair(keep, value, untried[0])
            else:
                proposal = self._swap(keep, value, 2 - turn % 2, turn // 2)
                turn += 1
            if proposal is None:
                break
            kl = self.kl(proposal)
            if kl < best:
                keep, best, turn = proposal, kl, 0
                value, pairs = self._values(keep)
            elif size > 2:
                size = size // 2
        return Finishing(keep, before, best, self._tokens, int((keep & ~start).sum()))

    def _affordable(self) -> bool:
        """Whether an exchange may be measured and, if it stays, every unit be judged anew: three times all rows."""
        return self.token_limit is None or self._tokens + 3 * self.rows[:, 1:].numel() <= self.token_limit

    def _values(self, keep: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """What each unit is worth to first order, [U], and pairs of kept units that cancel each other.

        Removed units are judged with all of them a little open: two that only work one after the other, each closed,
        would both look worthless.
        """
        gradients = self.sequence_gradients(keep.float())
        opened = self.sequence_gradients(keep.float() + AJAR * (~keep).float())
        value = -torch.where(keep, gradients.mean(0), opened.mean(0))
        return value, self._opposite_pairs(keep, gradients)

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

    def _opposite_pairs(self, keep: Tensor, gradients: Tensor) -> list[tuple[int, int]]:
        """The pairs of kept units of one head and kind whose gradients [rows, U] cancel, most opposite first.

        Two units without any gradient count as well: they do nothing, together or apart. Only units of the same head
        are compared, so memory grows with a head's width and not with all units.
        """
        found: list[tuple[float, int, int]] = []
        for members in self._heads:
            kept = members[keep[members]]
            gram = gradients[:, kept].T @ gradients[:, kept]  # [kept, kept]
            norms = gram.diagonal()[:, None] + gram.diagonal()[None, :]
            left_over = torch.triu((norms + 2 * gram) / (norms + 1e-30), 1)
            left_over += torch.tril(torch.full_like(gram, torch.inf))
            for first, second in (left_over <= OPPOSITE).nonzero().tolist():
                pair = sorted((int(kept[first]), int(kept[second])))
                found.append((float(left_over[first, second]), pair[0], pair[1]))
        return [(first, second) for _, first, second in sorted(found)[: 2 * WIDTH]]

    def _without_pair(self, keep: Tensor, value: Tensor, pair: tuple[int, int]) -> Tensor | None:
        """Drop two units and add the two best removed ones of their pool; None where there are not two."""
        free = ~keep & (self._pool == self._pool[pair[0]])
        if int(free.sum()) < 2:
            return None
        best = torch.argsort(torch.where(free, value, -torch.inf), descending=True, stable=True)
        proposal = keep.clone()
        proposal[list(pair)] = False
        proposal[best[:2]] = True
        return proposal

    @torch.no_grad()
    def kl(self, keep: Tensor) -> float:
        """KL(dense || masked) over all selection rows, nats per token."""
        gates = self.units.to_channels(keep.float())
        total = torch.zeros((), dtype=torch.double, device=self.masked.device)
        for chosen, weight in distributed.shares(len(self.rows), self.batch_size):
            tokens = self.rows[chosen, :-1].to(self.masked.device)
            hidden = self.masked.hidden(tokens, gates)
            kl = kl_per_position(self._dense(chosen), hidden, self.masked.head)  # [B, T]
            total += (kl.sum(1).double() * weight.to(kl.device)).sum()
            self._tokens += distributed.size() * tokens.numel()
        return distributed.total(total).item() / self.rows[:, 1:].numel()

    def sequence_gradients(self, gate: Tensor) -> Tensor:
        """Gradient of the mean KL at gates [U], for each selection row on its own, [rows, U]."""
        result = torch.zeros(len(self.rows), self.units.count, device=self.masked.device)
        for chosen, weight in distributed.shares(len(self.rows), self.batch_size):
            tokens = self.rows[chosen, :-1].to(self.masked.device)
            gates = gate.expand(len(chosen), -1).clone().requires_grad_()  # [B, U]
            hidden = self.masked.hidden(tokens, self.units.to_channels(gates))
            kl_per_position(self._dense(chosen), hidden, self.masked.head).mean(1).sum().backward()
            assert gates.grad is not None
            result[chosen] += gates.grad * weight.to(gates.device)[:, None]
            self._tokens += distributed.size() * tokens.numel()
        return distributed.total(result)
