"""What flows through keys and values while the prompt turns from corrupted to clean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking.attention import hooks
from mechint.masking.masked_model import MaskedModel
from mechint.masking.sites import reach_before_rotation
from mechint.masking.units import Selection
from mechint.masking.weights import attention_modules
from mechint.methods.method import ScoringMethod
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.gradients import unit_gradients
from mechint.metrics.metric import NLL


@dataclass(kw_only=True)
class Conductance(ScoringMethod):
    """Conductance of keys and values (Dhamdhere et al. 2019, arXiv 1805.12233).

    Input embeddings go in `path_steps` equal steps from the paired prompt's, or from zero where there is none, to the
    prompt's own. At every step a channel gets dL/dy times how far it moves in the step, y at all positions; L is the
    negative log-likelihood of the right answers. The sum over the path is the part of the change of L that flows
    through the channel. The score is its size; with `signed` it is how much the channel lowers L, and those that
    raise it go first.

    Raises UserError for settings without meaning.
    """

    path_steps: int = 5
    signed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path_steps < 1:
            raise UserError(f"mask.path_steps={self.path_steps} must be at least 1")
        self.passes_per_row = self.path_steps + 1

    @property
    def selection(self) -> Selection:
        """As asked for."""
        return "signed" if self.signed else "absolute"

    def score(self, calibration: Evaluator) -> int:
        """Forward and backward passes at every point of the path."""
        masked = calibration.masked
        total = torch.zeros(masked.space.num_channels, dtype=torch.double, device=masked.device)
        for part in torch.arange(len(calibration.batch)).split(calibration.at_once):
            total += through_channels(masked, calibration.batch[part].to(masked.device), self.path_steps)
        flow = unit_gradients(self.units, total[None])[0] / len(calibration.batch)
        self._scores = -flow if self.signed else flow.abs()
        return self.passes_per_row * len(calibration.batch) * calibration.batch.length


def through_channels(masked: MaskedModel, batch: Batch, steps: int) -> Tensor:
    """Sum over a batch's sequences of the change of their losses that flows through every channel, double [N]."""
    before = masked.basis is not None and masked.basis.keys == "before_rope"
    if before:
        reach_before_rotation(masked)
    embed = masked.model.get_input_embeddings()
    assert isinstance(embed, nn.Module)
    with torch.no_grad():
        end = embed(batch.tokens)
        begin = torch.zeros_like(end) if batch.paired is None else embed(batch.paired)
    total = torch.zeros(masked.space.num_channels, dtype=torch.double, device=masked.device)
    last: list[Tensor] | None = None
    for step in range(steps + 1):
        inputs = (begin + (end - begin) * (step / steps)).requires_grad_()
        watching = [_Watching(before) for _ in masked.space.layers]
        with hooks(list(zip(attention_modules(masked), watching, strict=True))), torch.enable_grad():
            hidden = masked.hidden_of_embeddings(inputs, batch)
            NLL.per_sequence(hidden, batch, None, masked.head).sum().backward()
        states = [watch.seen[kind] for watch in watching for kind in ("k", "v")]
        if last is not None:
            flows = [
                _flow(masked, number, *pair) for number, pair in enumerate(zip(states, last, strict=True))
            ]
            total += torch.cat([flow.flatten() for flow in flows])
        last = [one.detach() for one in states]
    return total


def _flow(masked: MaskedModel, number: int, states: Tensor, before: Tensor) -> Tensor:
    """dL/dy (y - y before) summed over sequences and positions, [G, C], in the coordinates of masks."""
    assert states.grad is not None
    slope, moved = states.grad.double(), (states.detach() - before).double()
    if masked.basis is not None:
        maps = masked.basis.maps[number]
        slope, moved = slope @ maps.write.double().mT, moved @ maps.read.double()
    return (slope * moved).sum((0, 2))


class _Watching:
    """Keeps a layer's keys and values, with the gradient that a backward pass leaves in them."""

    def __init__(self, before: bool) -> None:
        self._before = before
        self.seen: dict[str, Tensor] = {}

    def before_rotation(self, states: str, values: Tensor) -> Tensor:
        """Keys before the rotation."""
        return self._keep("k", values) if self._before and states == "key" else values

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return (key if self._before else self._keep("k", key)), self._keep("v", value)

    def _keep(self, name: str, values: Tensor) -> Tensor:
        own = values.clone()  # so that what reads it elsewhere gets no part of the gradient
        own.retain_grad()
        self.seen[name] = own
        return own
