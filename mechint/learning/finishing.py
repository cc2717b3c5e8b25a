"""The finishing pass: exchanges of units that are tried out, and kept only where the selection KL falls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from mechint.masking.masked_model import MaskedModel
from mechint.masking.units import Pools, Units
from mechint.metrics.dense_outputs import DenseOutputs
from mechint.metrics.objectives import kl_per_position
from mechint.runtime import distributed

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
    _left: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._dense = DenseOutputs(self.masked, self.rows, self.dense_bytes)
        self._pool = self.pools.of_unit.to(self.masked.device)
        places = torch.stack([self.units.layer, self.units.head, self.units.has_value.long()], dim=1)
        place = torch.unique(places, dim=0, return_inverse=True)[1]
        order = torch.argsort(place, stable=True).to(self.masked.device)
        self._heads = order.split(torch.bincount(place).tolist())

    def run(self, keep: Tensor) -> Finishing:
        """Improve a hard mask keep, bool [U]."""
        start, before = keep, self.kl(keep)
        self._left, best = self.trials, before
        while self._may_try():
            value, effect, pairs = self._values(keep)
            found = (
                self._coarse(keep, value, best)
                or self._coarse(keep, effect, best)
                or self._fine(keep, (effect, value), pairs, best)
            )
            if found is None:
                break
            keep, best = found
        return Finishing(keep, before, best, self._tokens, int((keep & ~start).sum()))

    def _coarse(self, keep: Tensor, value: Tensor, best: float) -> tuple[Tensor, float] | None:
        """Exchange 1, 2, 4, ... units at once, as long as more is better; the best of these, if it improves."""
        found, size = None, 1
        while size <= max(1, int(keep.sum()) // 8) and self._may_try():
            proposal = self._swap(keep, value, size)
            kl = self._try(proposal)
            if proposal is None or kl >= best:
                break
            found, best, size = (proposal, kl), kl, 2 * size
        return found

    def _fine(
        self, keep: Tensor, orders: Sequence[Tensor], pairs: list[tuple[int, int]], best: float
    ) -> tuple[Tensor, float] | None:
        """The first improvement among less likely exchanges: of cancelling pairs, then of single units further down."""
        proposals = (self._without_pair(keep, orders[0], pair) for pair in pairs)
        for proposal in chain(proposals, self._walk(keep, orders)):
            if not self._may_try():
                return None
            if proposal is not None and (kl := self._try(proposal)) < best:
                return proposal, kl
        return None

    def _walk(self, keep: Tensor, orders: Sequence[Tensor]) -> Iterator[Tensor]:
        """Single exchanges, from the likeliest to the least: out by each of the orders, in by the first."""
        kept, removed = int(keep.sum()), int((~keep).sum())
        for distance in range(1, kept + removed - 1):  # 0 was tried already
            for into in range(max(0, distance - kept + 1), min(distance + 1, removed)):
                for order in orders:
                    proposal = self._swap(keep, order, 1, distance - into, into)
                    if proposal is not None:
                        yield proposal

    def _may_try(self) -> bool:
        return self._left > 0 and self._affordable()

    def _try(self, proposal: Tensor | None) -> float:
        if proposal is None:
            return float("inf")
        self._left -= 1
        return self.kl(proposal)

    def _affordable(self) -> bool:
        """Whether an exchange may be measured and, if it stays, every unit be judged anew: three times all rows."""
        return self.token_limit is None or self._tokens + 3 * self.rows[:, 1:].numel() <= self.token_limit

    def _values(self, keep: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """What each unit is worth to first order, [U]; the same with kept units judged by the size of their gradient,
        which is small for those without effect and not for those that help here and harm there; and pairs of kept units
        that cancel each other.

        Removed units are judged with all of them a little open: two that only work one after the other, each closed,
        would both look worthless.
        """
        gradients = self.sequence_gradients(keep.float())
        opened = self.sequence_gradients(keep.float() + AJAR * (~keep).float())
        value = -torch.where(keep, gradients.mean(0), opened.mean(0))
        effect = torch.where(keep, gradients.square().mean(0).sqrt(), value)
        return value, effect, self._opposite_pairs(keep, gradients)

    def _swap(
        self, keep: Tensor, value: Tensor, size: int, out_from: int = 0, in_from: int = 0
    ) -> Tensor | None:
        """Exchange the `size` least valuable kept units for the most valuable removed ones of the same pool.

        The first `out_from` and `in_from` of them are passed over. None when no unit can be exchanged.
        """
        lowest = torch.argsort(torch.where(keep, value, torch.inf), stable=True)[: int(keep.sum())]
        highest = torch.argsort(torch.where(keep, -torch.inf, value), descending=True, stable=True)
        highest = highest[: int((~keep).sum())]
        proposal, done = keep.clone(), 0
        for out in lowest[out_from:].tolist():
            inside = highest[in_from:]
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
