"""A model whose Key and Value channels are known, and what a mask found of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechint.learning.method import Ablation
from mechint.learning.objectives import kl_per_position
from mechint.masking import MaskedModel, Units
from mechint.masking.units import Unit
from mechint.planted.blueprint import KIND_NAMES


@dataclass(frozen=True)
class Recovery:
    """What a mask found of the truth.

    kl: mean over all positions of the evaluation rows, hard mask. precision and recall are None where there is no truth.
    missed, wrong: labels of the planted units that are not kept, and of the kept units that are not planted.
    """

    kept: int
    kl: float
    precision: float | None
    recall: float | None
    exact: bool | None
    missed: tuple[str, ...]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Certificate:
    """What knock-outs say about the truth; every KL is a mean over all positions of evaluation rows.

    accuracy: of the dense model where the next token is determined. empty_kl, truth_kl: of no unit, and of exactly the planted ones.
    effect: float [U], KL rise when a unit alone is removed from the dense model. necessity: float [U], KL rise when it
    alone is removed from the planted units; 0 for all others.
    """

    accuracy: float
    empty_kl: float
    truth_kl: float
    effect: Tensor
    necessity: Tensor


@dataclass(frozen=True)
class Planted:
    """A frozen model, rows to learn and to measure on, and the units that are true by certified knock-outs.

    rows, evaluation_rows: LongTensor [N, T + 1]. truth: bool [U]. labels: what each unit is for, with its place.
    masked.fill is set for `ablation`. budget: how many units a mask should keep (None: as many as are true).
    """

    name: str
    seed: int
    ablation: Ablation
    unit: Unit
    masked: MaskedModel
    units: Units
    rows: Tensor
    evaluation_rows: Tensor
    truth: Tensor
    labels: tuple[str, ...]
    budget: int | None = None
    certificate: Certificate = field(repr=False, default=None)  # type: ignore[assignment]

    @property
    def size(self) -> int:
        """k, the number of units a mask keeps."""
        return int(self.truth.sum()) if self.budget is None else self.budget

    @property
    def target_sparsity(self) -> float:
        """The sparsity at which exactly `size` units are kept."""
        return 1 - self.size / self.units.count

    @torch.no_grad()
    def kl(self, keep: Tensor, num_rows: int | None = None) -> float:
        """KL(dense || masked) for keep bool [U], mean over all positions of the (first `num_rows`) evaluation rows."""
        inputs = self.evaluation_rows[:num_rows, :-1].to(self.masked.device)
        gates = self.units.to_channels(keep.to(self.masked.device).float())
        return kl_per_position(self.masked.logits(inputs), self.masked.logits(inputs, gates)).mean().item()

    def recovery(self, keep: Tensor) -> Recovery:
        """Compare a mask, bool [U], with the truth."""
        keep = keep.cpu()
        hits, kept, true = int((keep & self.truth).sum()), int(keep.sum()), int(self.truth.sum())
        return Recovery(
            kept=kept,
            kl=self.kl(keep),
            precision=hits / max(kept, 1) if true else None,
            recall=hits / true if true else None,
            exact=hits == kept == true if true else None,
            missed=self.named(self.truth & ~keep),
            wrong=self.named(keep & ~self.truth) if true else (),
        )

    def named(self, chosen: Tensor) -> tuple[str, ...]:
        """Labels of the units that are chosen, bool [U]."""
        return tuple(self.labels[number] for number in chosen.nonzero().flatten().tolist())


def labels(units: Units, purposes: Sequence[str]) -> tuple[str, ...]:
    """A line for each unit, from the purposes of the channels [N]: its place, and what its channels are for."""
    place = {name: numbers.tolist() for name, numbers in units.space.labels().items()}
    channels: list[list[int]] = [[] for _ in range(units.count)]
    for channel, unit in enumerate(units.of_channel.tolist()):
        channels[unit].append(channel)
    lines = []
    for members in channels:
        first = members[0]
        numbers = "+".join(str(place["channel"][channel]) for channel in members[:2])
        numbers += f"+{len(members) - 2} more" if len(members) > 2 else ""
        found = " / ".join(dict.fromkeys(purposes[channel] for channel in members[:2]))
        kind = KIND_NAMES[place["kind"][first]]
        lines.append(f"layer {place['layer'][first]} {kind} head {place['head'][first]} channel {numbers}: {found}")
    return tuple(lines)
