"""What the activation of a removed unit becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mechint.data.batch import Batch

if TYPE_CHECKING:
    from mechint.masking.masked_model import MaskedModel

# What stands in for one layer's keys or values: [G, C], or [B, G, T, C] where it depends on the sequence.
Fill = Tensor


class Ablation(ABC):
    """Puts something in the place of what a mask removes.

    name: as in `ablation=`. carries_input: whether what is put there still depends on the sequence itself, so that a
    layer without any kept unit may pass something on.
    """

    name: ClassVar[str]
    carries_input: ClassVar[bool] = False

    def fit(self, masked: MaskedModel, calibration: Batch, at_once: int) -> Ablation:
        """The ablation with everything that it needs to know of calibration data; itself where that is nothing."""
        return self

    @abstractmethod
    def fills(self, masked: MaskedModel, batch: Batch) -> list[Fill] | None:
        """A fill for every layer's keys and values, in the order of `ChannelSpace.slices`; None: zero everywhere."""

    @property
    def constant(self) -> Tensor | None:
        """What removed channels [N] become where that is the same everywhere; None: zero."""
        return None

    @property
    def identity(self) -> Hashable:
        """Equal for ablations that put the same in."""
        return self.name


@dataclass(frozen=True)
class ZeroAblation(Ablation):
    """Removed channels become zero."""

    name: ClassVar[str] = "zero"

    def fills(self, masked: MaskedModel, batch: Batch) -> None:
        """Nothing."""
        return


@dataclass(frozen=True)
class MeanAblation(Ablation):
    """Removed channels become their mean over the calibration data, [N]."""

    name: ClassVar[str] = "mean"

    _means: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def fit(self, masked: MaskedModel, calibration: Batch, at_once: int) -> MeanAblation:
        """Measure the means, which takes one forward pass of the dense model."""
        fitted = MeanAblation()
        object.__setattr__(fitted, "_means", channel_means(masked, calibration, at_once))
        return fitted

    def fills(self, masked: MaskedModel, batch: Batch) -> list[Fill]:
        """Every channel's mean, [G, C]."""
        return masked.space.parts(self.constant)

    @property
    def constant(self) -> Tensor:
        """The means [N]."""
        assert self._means is not None, "means are measured by `fit`"
        return self._means

    @property
    def identity(self) -> Hashable:
        """The means themselves."""
        return self.name, None if self._means is None else self._means.cpu().numpy().tobytes()


ZERO = ZeroAblation()


@torch.no_grad()
def channel_means(masked: MaskedModel, batch: Batch, at_once: int) -> Tensor:
    """Mean of every channel over all positions of a batch, float [N]; padding does not count."""
    space, counts = masked.space, 0.0
    sums = torch.zeros(space.num_channels, dtype=torch.double, device=masked.device)
    attended: Tensor | None = None

    def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        for kind, states in (("k", key), ("v", value)):
            wide = states.double()  # [B, G, T, C]
            if attended is None:
                mean = wide.mean(2)
            else:
                weights = attended.to(wide)[:, None, :, None]
                mean = (wide * weights).sum(2)
            space.view(sums, position, kind).add_(mean.sum(0))  # type: ignore[arg-type]

    with masked.recording(record):
        for start in range(0, len(batch), at_once):
            part = batch[start : start + at_once].to(masked.device)
            attended = part.attention_mask
            masked.hidden(part)
            counts += len(part) if attended is None else int(attended.sum())
    return (sums / counts).float()
