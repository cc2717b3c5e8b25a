"""What the activation of a removed unit becomes."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mechint.data.batch import Batch

if TYPE_CHECKING:
    from typing_extensions import Self

    from mechint.masking.masked_model import MaskedModel

# What stands in for one layer's keys or values: [G, C], or [B, G, T, C] where it depends on the sequence.
Fill = Tensor


class Ablation(ABC):
    """Replaces the activations that a mask removes.

    One that has to know calibration data returns a fitted copy from `fit`.

    name: as in `ablation=`. carries_input: whether the replacement still depends on the sequence itself, so that a
    layer without any kept unit may pass something on. keeps_positions: whether it still tells positions apart, so that
    units that only do that are not missed.
    """

    name: ClassVar[str]
    carries_input: ClassVar[bool] = False
    keeps_positions: ClassVar[bool] = False

    def fit(self, masked: MaskedModel, calibration: Batch, at_once: int) -> Ablation:
        """The ablation with everything that it needs to know of calibration data; itself where that is nothing."""
        return self

    @abstractmethod
    def fills(self, masked: MaskedModel, batch: Batch) -> list[Fill] | None:
        """A fill for every layer's keys and values, in the order of `ChannelSpace.slices`; None: zero everywhere."""

    @abstractmethod
    def constant(self, masked: MaskedModel) -> Tensor | None:
        """What removed units' coordinates [N] become; None: zero. Raises UserError where it is not the same
        everywhere.
        """

    @property
    def learned(self) -> Sequence[Tensor]:
        """Tensors that are learned together with the mask; none for most ablations."""
        return []

    def step(self) -> None:  # noqa: B027
        """Update what is learned by the gradient that a backward pass left in it."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from step to step, as tensors, numbers and containers of them."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: B027
        """Continue from a state."""

    @property
    def identity(self) -> Hashable:
        """Equal for ablations that put the same in: what is measured of one is not measured again for another.

        The name, and everything that the ablation holds.
        """
        return self.name, tuple((name, _content(value)) for name, value in sorted(vars(self).items()))


def _content(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.detach().cpu().numpy().tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(_content(part) for part in value)
    found: Hashable = value
    return found


def known_ablations() -> dict[str, type[Ablation]]:
    """Every kind of ablation that is imported, by name."""
    found: dict[str, type[Ablation]] = {}
    kinds: list[type[Ablation]] = [Ablation]  # type: ignore[type-abstract]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if not inspect.isabstract(kind):
            found[kind.name] = kind
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class ZeroAblation(Ablation):
    """Removed channels become zero."""

    name: ClassVar[str] = "zero"

    def fills(self, masked: MaskedModel, batch: Batch) -> None:
        """Nothing."""
        return

    def constant(self, masked: MaskedModel) -> None:
        """Zero."""
        return


@dataclass(frozen=True)
class ConstantAblation(Ablation):
    """Removed units' coordinates become constants that are measured on calibration data, the same at every position.

    What is kept are the constants as keys and values themselves, [N], so that a basis may change after they were
    measured.
    """

    _states: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @abstractmethod
    def measured(self, masked: MaskedModel, calibration: Batch, at_once: int) -> Tensor:
        """The constants, float [N], where masks act: as `masked.recording` shows keys and values."""

    def fit(self, masked: MaskedModel, calibration: Batch, at_once: int) -> Self:
        """A copy with the constants, measured."""
        constants = self.measured(masked, calibration, at_once)
        if masked.basis is not None:
            parts = zip(masked.space.parts(constants), masked.basis.maps, strict=True)
            states = [(part.unsqueeze(-2) @ maps.write).flatten() for part, maps in parts]
            constants = torch.cat(states).detach()
        fitted = replace(self)
        object.__setattr__(fitted, "_states", constants)
        return fitted

    def fills(self, masked: MaskedModel, batch: Batch) -> list[Fill]:
        """Every coordinate's constant, [G, C]."""
        parts = masked.space.parts(self.states)
        if masked.basis is None:
            return parts
        maps = masked.basis.maps
        return [(part.unsqueeze(-2) @ one.read).squeeze(-2) for part, one in zip(parts, maps, strict=True)]

    @property
    def states(self) -> Tensor:
        """The constants as keys and values themselves, float [N]."""
        assert self._states is not None, "constants are measured by `fit`"
        return self._states

    def constant(self, masked: MaskedModel) -> Tensor:
        """The constants [N], in the coordinates of masks."""
        return torch.cat([part.flatten() for part in self.fills(masked, Batch(masked.no_tokens))]).detach()


@dataclass(frozen=True)
class MeanAblation(ConstantAblation):
    """Removed units' coordinates become their mean over the calibration data."""

    name: ClassVar[str] = "mean"

    def measured(self, masked: MaskedModel, calibration: Batch, at_once: int) -> Tensor:
        """The means, which take one forward pass of the dense model."""
        return channel_means(masked, calibration, at_once)


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
