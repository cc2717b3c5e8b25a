"""The finishing pass: exchanges of units that are tried, and kept only where the objective falls on selection data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from mechint.masking.units import Pools, Units
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.gradients import unit_gradients
from mechint.metrics.metric import Metric

# An exchange must lower the objective by more than float32 rounds: data without a rare token cannot tell its units
# from those of no account.
ROUNDING = 1e-6

# How far removed units are opened when their worth is estimated, and how many of the best are tried on each side.
AJAR = 0.3
WIDTH = 8

# What closing a kept unit costs is estimated at so many gates on its way, for one of GROUPS groups of units at a time.
GROUPS, GATES = 8, 3

# Two gradients cancel if this little of their squared norms is left in the squared norm of their sum.
OPPOSITE = 0.05

# A limited pass measures exchanges on so few sequences that it can pay for so many measurements, but on no fewer than
# FEWEST_JUDGES, and takes an exchange only if the objective falls by more than MARGIN standard errors.
MEASUREMENTS, FEWEST_JUDGES, MARGIN = 25, 4, 1.5


@dataclass
class Finishing:
    """What a finishing pass did.

    before, after: the objective on the selection data. tokens: tokens that went through the model, forward only or
    forward and backward. tried: exchanges that were measured. exchanged: units that were put in place of others.
    """

    keep: Tensor
    before: float
    after: float
    tokens: int = 0
    tried: int = 0
    exchanged: int = 0
    seconds: float = 0.0


@dataclass
class Exchange:
    """Local search over hard masks of a fixed count, on data that the learning steps did not see.

    The gradient at the current mask estimates to first order what each unit is worth. The least valuable kept units
    are exchanged for the most valuable removed ones, several at a time while that helps, then fewer; an exchange
    stays only if the objective measured on all selection data falls, so the result is never worse there. Kept units
    that cancel each other look vital one by one: pairs of one head whose gradients are opposite in every sequence are
    tried for removal together.

    Where the token limit does not pay for MEASUREMENTS measurements on all selection data, a part of the sequences
    judges exchanges, and groups of the others take turns in estimating what units are worth: units that are ranked and
    judged on the same few sequences fit these and no others. An exchange then stays only if the objective falls by more
    than MARGIN standard errors.

    selection: the model on the selection data. trials: exchanges to try. token_limit: no exchange is tried that could
    take more tokens through the model in all.
    """

    selection: Evaluator
    objective: Metric
    units: Units
    pools: Pools
    trials: int
    token_limit: int | None = None
    on_trial: Callable[[int], None] = lambda tried: None
    _tried: int = field(default=0, init=False)
    _worth: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        device, count = self.selection.masked.device, len(self.selection.batch)
        affordable = count
        if self.token_limit is not None:
            affordable = self.token_limit // (MEASUREMENTS * self.selection.batch.length)
        judges = min(count, max(FEWEST_JUDGES, affordable))
        self._few = judges < count
        self._judge = (
            replace(self.selection, batch=self.selection.batch[:judges]) if self._few else self.selection
        )
        self._estimators = torch.arange(judges if self._few else 0, count)
        self._turn = 0
        self._pool = self.pools.of_unit.to(device)
        places = torch.stack([self.units.layer, self.units.head, self.units.has_value.long()], dim=1)
        place = torch.unique(places, dim=0, return_inverse=True)[1]
        order = torch.argsort(place, stable=True).to(device)
        self._heads = order.split(torch.bincount(place).tolist())

    def run(self, keep: Tensor) -> Finishing:
        """Improve a hard mask keep, bool [U]."""
        began, start = time.perf_counter(), keep
        self._best = self._by_sequence(keep)
        best = before = self._mean(self._best)
        while self._may_try():
            value, effect, pairs = self._values(keep)
            found = (
                self._coarse(keep, value, best)
                or self._coarse(keep, effect, best)
                or self._thorough(keep, effect, value, pairs, best)
            )
            if found is None:
                break
            keep, best = found
        return Finishing(
            keep,
            before,
            best,
            self.tokens,
            self._tried,
            int((keep & ~start).sum()),
            time.perf_counter() - began,
        )

    def _coarse(self, keep: Tensor, value: Tensor, best: float) -> tuple[Tensor, float] | None:
        """Exchange 1, 2, 4, ... units at once, as long as more is better; the best of these, if it improves."""
        found, size = None, 1
        while size <= max(1, int(keep.sum()) // 8) and self._may_try():
            proposal = self._swap(keep, value, size)
            value_there = self._try(proposal)
            if proposal is None or value_there >= best:
                break
            found, best, size = (proposal, value_there), value_there, 2 * size
        return found

    def _thorough(
        self, keep: Tensor, effect: Tensor, value: Tensor, pairs: list[tuple[int, int]], best: float
    ) -> tuple[Tensor, float] | None:
        """What is tried where gradients propose nothing that helps; tokens permitting, by what closing units costs."""
        if self.token_limit is not None:
            return self._fine(keep, (effect, value), pairs, best)
        if self._worth is None:
            self._worth = torch.full((len(keep),), torch.nan, device=keep.device)
        unknown = keep & self._worth.isnan()  # once for each unit: estimates cost as much as many trials
        self._worth = torch.where(unknown, self._closing(keep, unknown), self._worth)
        closing = torch.where(keep, self._worth, value)
        for size in (1, 2, 4):  # two that only work together do nothing one by one
            if not self._may_try():
                return None
            proposal = self._swap(keep, closing, size)
            if proposal is not None and (there := self._try(proposal)) < best:
                return proposal, there
        return self._fine(keep, (closing, effect, value), pairs, best)

    def _closing(self, keep: Tensor, asked: Tensor) -> Tensor:
        """What some kept units, bool [U], are worth on their way from open to closed, [U]; 0 for all others.

        Where the model is sure of its answer, the gradient at an open gate is nearly zero for units that the answer
        rests on, so that others of no account seem worth more.
        """
        generator = torch.Generator().manual_seed(self._turn)
        numbers = asked.nonzero().flatten()
        found = torch.zeros(len(keep), device=keep.device)
        for stratum in range(GATES):
            drawn = (stratum + torch.rand(len(keep), generator=generator).to(keep.device)) / GATES
            order = numbers[torch.randperm(len(numbers), generator=generator).to(keep.device)]
            for group in order.split(math.ceil(int(keep.sum()) / GROUPS)):
                gate = keep.float()
                gate[group] = drawn[group]
                found[group] -= self.sequence_gradients(gate).mean(0)[group].to(found) / GATES
        return found

    def _fine(
        self, keep: Tensor, orders: Sequence[Tensor], pairs: list[tuple[int, int]], best: float
    ) -> tuple[Tensor, float] | None:
        """The first improvement among less likely exchanges: of cancelling pairs, then of single units further down."""
        proposals = (self._without_pair(keep, orders[0], pair) for pair in pairs)
        for proposal in chain(proposals, self._walk(keep, orders)):
            if not self._may_try():
                return None
            if proposal is not None and (there := self._try(proposal)) < best:
                return proposal, there
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
        return self._tried < self.trials and self._affordable()

    def _try(self, proposal: Tensor | None) -> float:
        if proposal is None:
            return float("inf")
        self._tried += 1
        self.on_trial(self._tried)
        values = self._by_sequence(proposal)
        if self._few:
            change = values - self._best
            if not float(change.mean()) < -MARGIN * float(change.std()) / len(change) ** 0.5:
                return float("inf")
        value = self._mean(values)
        if value > self._mean(self._best) - ROUNDING:
            return float("inf")
        self._best = values
        return value

    def _affordable(self) -> bool:
        """Whether an exchange may be measured and, if it stays, every unit be judged anew: three times all data."""
        needed = 3 * self._judge.batch.tokens.numel()
        return self.token_limit is None or self.tokens + needed <= self.token_limit

    def _values(self, keep: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """What each unit is worth to first order, [U]; the same with kept units judged by the size of their gradient,
        which is small for those without effect and not for those that help here and harm there; and pairs of kept units
        that cancel each other.

        Removed units are judged with all of them a little open: two that only work one after the other, each closed,
        would both look worthless.
        """
        self._turn += 1
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

    @property
    def tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self.selection.tokens + (self._judge.tokens if self._few else 0)

    def measure(self, keep: Tensor) -> float:
        """The objective of a hard mask, bool [U], on the data that judge."""
        return self._mean(self._by_sequence(keep))

    def _by_sequence(self, keep: Tensor) -> Tensor:
        return self._judge([self.units.to_channels(keep.float())], [self.objective])[0, 0]

    def _mean(self, values: Tensor) -> float:
        return float(self._judge.over_positions(values))

    def sequence_gradients(self, gate: Tensor) -> Tensor:
        """Gradient of the objective at gates [U], for each sequence that estimates on its own, [M, U]."""
        numbers = None
        if self._few:
            count = min(len(self._judge.batch), len(self._estimators))
            numbers = self._estimators.roll(-self._turn * count)[:count]
        gradients = self.selection.gradients(self.units.to_channels(gate), self.objective, numbers)
        return unit_gradients(self.units, gradients)
