"""Ablations that know prompts: what removed units become depends on the position, or on a paired prompt."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking.ablation import Ablation, Fill
from mechint.masking.masked_model import MaskedModel


@dataclass(frozen=True)
class MeanPerPositionAblation(Ablation):
    """Removed units' coordinates become their mean over the calibration data at the same position of the sequence.

    Positions are counted without padding. At positions that calibration data do not reach it is the mean over all of
    them. Kept are the means of keys and values themselves, so that a basis may change after they were measured.
    """

    name: ClassVar[str] = "mean_per_position"
    keeps_positions: ClassVar[bool] = True

    _means: tuple[Tensor, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def fit(self, masked: MaskedModel, calibration: Batch, at_once: int) -> MeanPerPositionAblation:
        """Measure the means, which takes one forward pass of the dense model."""
        fitted = MeanPerPositionAblation()
        object.__setattr__(fitted, "_means", position_means(masked, calibration, at_once))
        return fitted

    def fills(self, masked: MaskedModel, batch: Batch) -> list[Fill]:
        """The mean of every sequence's positions, [B, G, T, C], or [1, G, T, C] where there is no padding."""
        assert self._means is not None, "means are measured by `fit`"
        numbers = position_numbers(batch)
        last = self._means[0].shape[1] - 1  # the mean over all positions
        places = numbers.clamp_max(last).to(self._means[0].device)
        return [means[:, places].transpose(0, 1) for means in self._means]

    def constant(self, masked: MaskedModel) -> Tensor:
        """There is none. Raises UserError."""
        raise _no_constant(self.name)


@dataclass(frozen=True)
class CounterfactualAblation(Ablation):
    """Removed units keep the keys and values that the dense model has on the paired prompt, position by position.

    With no unit kept and the same last token, the model then does as on the paired prompt. Also known as resample or
    interchange ablation, and patching.
    """

    name: ClassVar[str] = "counterfactual"
    carries_input: ClassVar[bool] = True
    keeps_positions: ClassVar[bool] = True

    _latest: dict[str, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fit(self, masked: MaskedModel, calibration: Batch, at_once: int) -> CounterfactualAblation:
        """Nothing to measure. Raises UserError where there are no paired prompts."""
        _paired(calibration)
        return CounterfactualAblation()

    @torch.no_grad()
    def fills(self, masked: MaskedModel, batch: Batch) -> list[Fill]:
        """The paired prompts' keys and values, [B, G, T, C], from one pass of the dense model for each batch."""
        seen = (masked.model, "after_rope" if masked.basis is None else masked.basis.keys)
        if self._latest.get("batch") is not batch or self._latest.get("seen") != seen:
            fills = states_of(masked, Batch(_paired(batch), attention_mask=batch.attention_mask))
            self._latest.update(batch=batch, seen=seen, fills=fills)
        return cast(list[Fill], self._latest["fills"])

    def constant(self, masked: MaskedModel) -> Tensor:
        """There is none. Raises UserError."""
        raise _no_constant(self.name)

    @property
    def identity(self) -> Hashable:
        """The name: nothing is measured, and the latest fills are those of the latest batch."""
        return self.name


def states_of(masked: MaskedModel, batch: Batch) -> list[Tensor]:
    """Keys and values [B, G, T, C] of the dense model where masks act on them, in the order of the space's slices."""
    found: dict[tuple[int, str], Tensor] = {}

    def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        found[position, "k"], found[position, "v"] = key, value

    with masked.recording(record):
        masked.hidden(batch)
    order = list(masked.space.slices)
    if masked.basis is None:
        return [found[place] for place in order]
    return [(found[place] @ one.write).detach() for place, one in zip(order, masked.basis.maps, strict=True)]


@torch.no_grad()
def position_means(masked: MaskedModel, batch: Batch, at_once: int) -> tuple[Tensor, ...]:
    """Means of keys and values at each position, float [G, P + 1, C] of every layer and kind; the last are the means
    over all positions. Padding does not count.
    """
    length = batch.length
    sums: list[Tensor] | None = None
    counts = torch.zeros(length, dtype=torch.double)
    for start in range(0, len(batch), at_once):
        part = batch[start : start + at_once].to(masked.device)
        numbers = position_numbers(part).expand(len(part), -1)
        there = torch.ones_like(numbers, dtype=torch.bool)
        if part.attention_mask is not None:
            there = part.attention_mask
        counts += torch.bincount(numbers[there].cpu(), minlength=length)
        states = [state.double().transpose(1, 2)[there] for state in states_of(masked, part)]  # [P, G, C]
        if sums is None:
            sums = [state.new_zeros(length, *state.shape[1:]) for state in states]
        for total, state in zip(sums, states, strict=True):
            total.index_add_(0, numbers[there], state)
    assert sums is not None
    reached = int((counts > 0).sum())  # positions are counted from the first token on, so there are no gaps
    weights = counts[:reached].to(sums[0].device)[:, None, None]
    means = [
        torch.cat([total[:reached] / weights, total.sum(0, keepdim=True) / weights.sum()]) for total in sums
    ]
    return tuple(mean.transpose(0, 1).float().contiguous() for mean in means)


def position_numbers(batch: Batch) -> Tensor:
    """The position of every token in its sequence, without padding, LongTensor [B, T], or [1, T] if all are alike."""
    if batch.attention_mask is None:
        return torch.arange(batch.length, device=batch.tokens.device)[None]
    return (batch.attention_mask.long().cumsum(1) - 1).clamp_min(0)


def _paired(batch: Batch) -> Tensor:
    if batch.paired is None:
        raise UserError(
            "ablation=counterfactual needs paired prompts: use a dataset that has them, e.g. dataset=ioi or "
            "dataset=pairs, or ablation=mean"
        )
    return batch.paired


def _no_constant(name: str) -> UserError:
    return UserError(
        f"this method reckons with one value of every removed unit, and ablation={name} has several"
    )
