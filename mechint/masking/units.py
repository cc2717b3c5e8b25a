"""Units: what one mask bit switches, and how many of them a target leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.masked_model import MaskedModel
from mechint.masking.rotary import rotary_partners
from mechint.masking.space import ChannelSpace

Unit = Literal["channel", "rope_pair", "head"]
Scope = Literal["global", "per_layer", "per_head"]
# What units are ranked by: a score with a sign, those that do harm last, a size, or a rank put together from others.
Selection = Literal["signed", "absolute", "rank"]


class Placed:
    """A tensor that is copied to a device once, so that no step waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._copies = {tensor.device: tensor}
        self._tensor = tensor

    def on(self, device: torch.device) -> Tensor:
        """The tensor on a device."""
        if device not in self._copies:
            self._copies[device] = self._tensor.to(device)
        return self._copies[device]


@dataclass(frozen=True)
class Units:
    """The units of a model: U of them, each switching one or more of the N channels.

    of_channel: LongTensor [N], the unit of each channel. layer, head: LongTensor [U], position of the unit's layer
    and its KV head. has_key, has_value: bool [U], whether the unit switches K channels, V channels (both with
    `tie_kv`).
    """

    space: ChannelSpace
    of_channel: Tensor
    layer: Tensor
    head: Tensor
    has_key: Tensor
    has_value: Tensor

    @property
    def count(self) -> int:
        """U, the number of units."""
        return len(self.layer)

    def to_channels(self, values: Tensor) -> Tensor:
        """Spread a per-unit tensor [..., U] to the channels [..., N]; differentiable."""
        if self._one_each:
            return values
        return values[..., self._of_channel.on(values.device)]

    def of_channels(self, values: Tensor) -> Tensor:
        """One value per unit [U] of values [N] that the channels of a unit share."""
        return values.new_zeros(self.count).scatter_(0, self.of_channel, values)

    @cached_property
    def _one_each(self) -> bool:
        """Whether every channel is a unit of its own, in the same order."""
        return torch.equal(self.of_channel, torch.arange(self.count))

    @cached_property
    def _of_channel(self) -> Placed:
        return Placed(self.of_channel)

    def pools(self, scope: Scope) -> Tensor:
        """The pool of each unit, LongTensor [U]: units compete for places only inside their pool.

        Inside a layer or a head, K and V compete with each other.
        """
        if scope == "global":
            return torch.zeros_like(self.layer)
        if scope == "per_layer":
            return self.layer
        heads = self.layer * (int(self.head.max()) + 1) + self.head
        return torch.unique(heads, return_inverse=True)[1]


def make_units(masked: MaskedModel, unit: Unit = "channel", tie_kv: bool = False) -> Units:
    """Group the channels of a model into units.

    `rope_pair` joins the two key channels that are rotated together (values stay single); `head` joins all key
    channels of a KV head, and all its value channels; `tie_kv` joins what it finds at the same place in K and V.

    Raises UserError for an unknown unit, or for `tie_kv` where K and V differ in width.
    """
    if unit not in get_args(Unit):
        raise UserError(f"mask.unit={unit} is not known; use one of {', '.join(get_args(Unit))}")
    space = masked.space
    labels = space.labels()
    layer, kind, head, channel = (labels[name].clone() for name in ("layer", "kind", "head", "channel"))
    if tie_kv and any(shape.key_width != shape.value_width for shape in space.layers):
        raise UserError(
            "mask.tie_kv=true needs keys and values of the same width; use mask.tie_kv=false for this model"
        )
    if unit == "rope_pair":
        if masked.basis is not None:
            raise UserError(
                "mask.unit=rope_pair joins channels that are rotated together; in a basis use mask.unit=channel"
            )
        channel = _first_of_pair(masked, layer, kind, channel, tie_kv)
    elif unit == "head":
        channel = torch.zeros_like(channel)
    group_kind = torch.zeros_like(kind) if tie_kv else kind
    keys = torch.stack([layer, group_kind, head, channel], dim=1)  # [N, 4]
    rows, of_channel = torch.unique(keys, dim=0, return_inverse=True)  # sorted: layer by layer, K before V
    touches = torch.zeros(len(rows), 2, dtype=torch.bool)
    touches[of_channel, kind] = True
    return Units(space, of_channel, rows[:, 0], rows[:, 2], has_key=touches[:, 0], has_value=touches[:, 1])


def _first_of_pair(masked: MaskedModel, layer: Tensor, kind: Tensor, channel: Tensor, tie_kv: bool) -> Tensor:
    """Name each rotated key channel after the smaller channel of its pair."""
    channel = channel.clone()
    for position, partners in enumerate(rotary_partners(masked)):
        chosen = (layer == position) & ((kind == 0) | tie_kv)
        channel[chosen] = torch.minimum(channel[chosen], partners[channel[chosen]])
    return channel


@dataclass(frozen=True)
class Pools:
    """Pools of units and how many units each keeps at a given sparsity.

    of_unit: LongTensor [U]. share: float [pools], the pool's own final sparsity as a fraction of units removed.
    begin: float [pools], the sparsity it begins with; None: all begin dense.
    """

    of_unit: Tensor
    share: Tensor
    begin: Tensor | None = None

    def quotas(self, progress: float) -> Tensor:
        """Units kept per pool, LongTensor [pools], when `progress` in [0, 1] of the final sparsity is reached.

        The sum is exactly round(total kept): remainders go to the pools that lose most by rounding down.
        """
        if progress not in self._latest:
            self._latest.clear()
            self._latest[progress] = self._count(progress)
        return self._latest[progress]

    def _count(self, progress: float) -> Tensor:
        sizes = self._sizes.double()
        begin = torch.zeros_like(self.share) if self.begin is None else self.begin
        exact = sizes * (1 - begin - progress * (self.share - begin))
        floor = exact.floor()
        missing = round_half_up(float(exact.sum())) - int(floor.sum())
        order = torch.argsort(exact - floor, descending=True, stable=True)
        floor[order[:missing]] += 1
        return floor.long()

    def select(self, scores: Tensor, progress: float = 1.0) -> Tensor:
        """The hard mask, bool [U]: in every pool the units with the highest scores [U], as many as its quota.

        Equal scores are decided by the unit's number, so the choice is deterministic.
        """
        quotas = self.quotas(progress)
        if len(quotas) == 1:  # the usual case, in every step: no ranks are needed
            order = torch.argsort(scores.detach(), descending=True, stable=True)
            return torch.zeros_like(order, dtype=torch.bool).index_fill_(0, order[: int(quotas)], True)
        rank = self.ranks(scores)
        return rank < quotas.to(scores.device)[self._pool.on(scores.device)]

    def within(self, allowed: Tensor) -> Pools:
        """Pools with the same final quotas, filled from the units `allowed`, bool [U], alone: others are never kept.

        Where a pool has fewer allowed units than its quota, the next pools with room keep the difference.
        """
        pools = len(self.share)
        sizes = torch.bincount(self.of_unit[allowed], minlength=pools)
        wanted = self.quotas(1.0)
        quotas = torch.minimum(wanted, sizes)
        missing = int(wanted.sum() - quotas.sum())
        assert missing <= int((sizes - quotas).sum()), "more units are to be kept than are allowed"
        for pool in range(pools):
            extra = min(missing, int(sizes[pool] - quotas[pool]))
            quotas[pool] += extra
            missing -= extra
        share = 1 - quotas.double() / sizes.clamp_min(1)
        of_unit = torch.where(allowed, self.of_unit, self.of_unit + pools)
        never = torch.ones_like(share)
        return Pools(of_unit, torch.cat([share, never]), torch.cat([torch.zeros_like(share), never]))

    def agree(self, scores: Tensor, keep: Tensor) -> Tensor:
        """Scores [U] moved just across their pool's threshold where they would not select `keep`, bool [U].

        In double precision, so that the step across is not lost.
        """
        scores = scores.double()
        middle = self.thresholds(scores)
        step = 1e-6 * (scores.max() - scores.min()).clamp_min(1e-12)
        return torch.where(keep, torch.maximum(scores, middle + step), torch.minimum(scores, middle - step))

    def thresholds(self, scores: Tensor, keep: Tensor | None = None) -> Tensor:
        """Midway between the lowest kept and the highest removed score of each unit's pool, [U].

        keep: the units that are selected, bool [U]; None: those of the final sparsity. Where a pool keeps all or
        nothing it is the pool's lowest or highest score.
        """
        keep = self.select(scores) if keep is None else keep
        if len(self.share) == 1:
            lowest = torch.where(keep, scores, torch.inf).amin()
            highest = torch.where(keep, -torch.inf, scores).amax()
            return _between(lowest, highest).expand_as(scores)
        pool = self._pool.on(scores.device)
        infinity = scores.new_full((len(self.share),), torch.inf)
        kept = infinity.scatter_reduce(0, pool, torch.where(keep, scores, torch.inf), "amin")
        removed = (-infinity).scatter_reduce(0, pool, torch.where(keep, -torch.inf, scores), "amax")
        return _between(kept, removed)[pool]

    def ranks(self, scores: Tensor) -> Tensor:
        """Rank of every unit inside its pool, LongTensor [U]; 0 is the highest score."""
        order = torch.argsort(scores.detach(), descending=True, stable=True)
        places = torch.arange(len(order), device=order.device)
        if len(self.share) > 1:
            pools = self._pool.on(scores.device)
            order = order[torch.argsort(pools[order], stable=True)]
            starts = (self._sizes.cumsum(0) - self._sizes).to(scores.device)
            places = places - starts[pools[order]]
        ranks = torch.empty_like(order)
        ranks[order] = places
        return ranks

    @cached_property
    def _sizes(self) -> Tensor:
        """Units in every pool, LongTensor [pools]."""
        return torch.bincount(self.of_unit, minlength=len(self.share))

    @cached_property
    def _pool(self) -> Placed:
        return Placed(self.of_unit)

    @cached_property
    def _latest(self) -> dict[float, Tensor]:
        """The latest quotas: a step asks for the same ones more than once, and most steps for those of the end."""
        return {}


def _between(kept: Tensor, removed: Tensor) -> Tensor:
    """The middle of the lowest kept and the highest removed scores; of infinite ones the other."""
    return torch.where(kept.isinf(), removed, torch.where(removed.isinf(), kept, (kept + removed) / 2))


def round_half_up(value: float) -> int:
    """Round to the nearest integer; halves go up, and float noise does not decide."""
    return int(value + 0.5 + 1e-9)


def make_pools(
    units: Units,
    target_sparsity: float,
    scope: Scope = "global",
    key_sparsity: float | None = None,
    value_sparsity: float | None = None,
) -> Pools:
    """Decide where units compete and which share of each pool is removed.

    With `key_sparsity` and/or `value_sparsity`, K and V have pools of their own; the one that is not given is
    solved for, so that the whole meets `target_sparsity`.

    Raises UserError for an unknown scope or for targets that contradict each other.
    """
    if scope not in get_args(Scope):
        raise UserError(f"mask.scope={scope} is not known; use one of {', '.join(get_args(Scope))}")
    of_unit = units.pools(scope)
    shares = torch.full((units.count,), target_sparsity, dtype=torch.double)
    if key_sparsity is not None or value_sparsity is not None:
        if bool((units.has_key & units.has_value).any()):
            raise UserError(
                "mask.key_sparsity and mask.value_sparsity need separate K and V units; use mask.tie_kv=false"
            )
        key, value = _split_target(units, target_sparsity, key_sparsity, value_sparsity)
        of_unit = torch.unique(of_unit * 2 + units.has_value.long(), return_inverse=True)[1]
        shares = torch.where(units.has_key, key, value).double()
    share = torch.zeros(int(of_unit.max()) + 1, dtype=torch.double).scatter_(0, of_unit, shares)
    return Pools(of_unit, share)


def _split_target(
    units: Units, target: float, key_sparsity: float | None, value_sparsity: float | None
) -> tuple[float, float]:
    keys, values = int(units.has_key.sum()), int(units.has_value.sum())
    if key_sparsity is None:
        assert value_sparsity is not None
        key_sparsity = (target * (keys + values) - value_sparsity * values) / keys
    if value_sparsity is None:
        value_sparsity = (target * (keys + values) - key_sparsity * keys) / values
    for name, other, sparsity in (("key", "value", key_sparsity), ("value", "key", value_sparsity)):
        if not 0 <= sparsity <= 1:
            raise UserError(
                f"mask.{other}_sparsity leaves {sparsity:.3f} for mask.{name}_sparsity to reach "
                f"target_sparsity={target}; change one of them, or give both"
            )
    return key_sparsity, value_sparsity
