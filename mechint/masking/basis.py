"""Coordinates of a head's keys and values: an invertible map for every KV head and kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechint.masking.space import ChannelSpace, Kind

Where = Literal["after_rope", "before_rope"]


@dataclass(frozen=True)
class Maps:
    """The coordinates of one layer's keys or values.

    read: float32 [G, C, C], whose columns take the coordinates out of states: x' = x read. write: float32 [G, C, C],
    its inverse, whose rows are the directions that coordinates stand for: x = x' write.
    """

    read: Tensor
    write: Tensor

    def coordinates(self, states: Tensor) -> Tensor:
        """States [..., G, T, C] in these coordinates."""
        return states.to(self.read.dtype) @ self.read

    def dual(self, states: Tensor) -> Tensor:
        """What states [..., G, T, C] are multiplied with, in the coordinates that leave the product the same."""
        return states.to(self.write.dtype) @ self.write.mT


@dataclass(frozen=True)
class Basis:
    """Maps for every layer's keys and values, in the order of `ChannelSpace.slices`.

    keys: whether the directions are of keys as attention has them, or before they are rotated.
    names: of the bases of keys and of values, for reports. maps_of: the maps, made anew at every call while they are
    learned. energy: what each direction is worth to the method that chose them, float [N]; None where it does not say.
    """

    names: tuple[str, str]
    keys: Where
    maps_of: Callable[[], Sequence[Maps]]
    energy: Tensor | None = None

    @classmethod
    def fixed(
        cls, names: tuple[str, str], keys: Where, maps: Sequence[Maps], energy: Tensor | None = None
    ) -> Basis:
        """A basis that does not change."""
        return cls(names, keys, lambda: maps, energy)

    @torch.no_grad()
    def frozen(self) -> Basis:
        """The basis as it is now."""
        maps = [Maps(one.read.detach().clone(), one.write.detach().clone()) for one in self.maps]
        return Basis.fixed(self.names, self.keys, maps, self.energy)

    @property
    def maps(self) -> Sequence[Maps]:
        """The maps as they are now."""
        return self.maps_of()

    def of(self, space: ChannelSpace, position: int, kind: Kind) -> Maps:
        """The maps of one layer's keys or values."""
        return self.maps[list(space.slices).index((position, kind))]

    def error(self) -> float:
        """How far read and write are from being inverse, as the largest entry of read write - 1."""
        worst = 0.0
        for one in self.maps:
            product = one.read.double() @ one.write.double()
            worst = max(
                worst, float((product - torch.eye(product.shape[-1], dtype=torch.double)).abs().max())
            )
        return worst
