"""Constants in the place of removed units that are learned, so that removing does as little harm as it can."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking.ablation import ConstantAblation, channel_means
from mechint.masking.masked_model import MaskedModel


@dataclass(frozen=True)
class OptimalAblation(ConstantAblation):
    """Removed units become constants that are learned together with the mask (Li and Janson 2024, arXiv 2409.09951).

    They start as the means over the calibration data, and Adam lowers the mask's own objective by them at every step,
    at a rate in units of each layer's and kind's root mean square. What a unit is worth is then what no constant can
    make up for. Kept are states [N], not coordinates, so that a basis may change.

    learning_rate: of Adam, as a share of that root mean square.
    """

    learning_rate: float = 0.03

    name: ClassVar[str] = "optimal"

    _offset: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _scale: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _optimizer: torch.optim.Optimizer | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f"ablation.learning_rate={self.learning_rate} must be above 0")

    def measured(self, masked: MaskedModel, calibration: Batch, at_once: int) -> Tensor:
        """The means, from which constants start."""
        return channel_means(masked, calibration, at_once)

    def fit(self, masked: MaskedModel, calibration: Batch, at_once: int) -> OptimalAblation:
        """Start from the means, which takes one forward pass of the dense model."""
        start = super().fit(masked, calibration, at_once).states
        scale = torch.ones_like(start)
        for part in masked.space.slices.values():
            scale[part] = start[part].square().mean().sqrt().clamp_min(1e-3)
        return self._begun(start, scale)

    @property
    def states(self) -> Tensor:
        """The constants as keys and values, float [N], differentiable in what is learned."""
        start = super().states
        return start if self._offset is None or self._scale is None else start + self._offset * self._scale

    @property
    def learned(self) -> Sequence[Tensor]:
        """The tensors that a step changes."""
        return [] if self._offset is None else [self._offset]

    def step(self) -> None:
        """Update the constants by the gradient that the last backward pass left."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The constants, and the optimizer that learns them."""
        assert self._offset is not None
        assert self._optimizer is not None
        return {
            "offset": self._offset.detach().cpu().clone(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        assert self._offset is not None
        assert self._optimizer is not None
        with torch.no_grad():
            self._offset.copy_(state_dict["offset"])
        self._optimizer.load_state_dict(state_dict["optimizer"])

    def fresh(self) -> OptimalAblation:
        """The same constants, to be learned further for another mask."""
        assert self._scale is not None
        return self._begun(self.states.detach(), self._scale)

    @property
    def identity(self) -> Hashable:
        """The constants themselves."""
        return self.name, None if self._states is None else self.states.detach().cpu().numpy().tobytes()

    def _begun(self, start: Tensor, scale: Tensor) -> OptimalAblation:
        begun = OptimalAblation(self.learning_rate)
        offset = torch.zeros_like(start).requires_grad_()
        optimizer = torch.optim.Adam([offset], lr=self.learning_rate)
        for name, value in (
            ("states", start),
            ("offset", offset),
            ("scale", scale),
            ("optimizer", optimizer),
        ):
            object.__setattr__(begun, f"_{name}", value)
        return begun
