"""A model whose Key and Value channels are known, and what a mask found of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mechint.data.batch import Batch
from mechint.masking import MaskedModel, Units
from mechint.masking.ablation import Ablation
from mechint.masking.units import Unit
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.metric import KL
from mechint.validation.blueprint import KIND_NAMES


@dataclass(frozen=True)
class Recovery:
    """What a mask found of the truth.

    kl: mean over all positions of the evaluation rows, hard mask. precision, recall, exact: None where there is no
    truth. missed, wrong: labels of the planted units that are not kept, and of the kept ones that are not planted.
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

    accuracy: of the dense model where the next token is determined. empty_kl, truth_kl: of no unit, and of exactly
    the planted ones. effect: float [U], KL when a unit alone is removed from the dense model. necessity: float [U],
    KL rise when it alone is removed from the planted units; 0 for all others.
    """

    accuracy: float
    empty_kl: float
    truth_kl: float
    effect: Tensor
    necessity: Tensor


@dataclass(frozen=True)
class Planted:
    """A frozen model, data to learn and to measure on, and the units that are true by certified knock-outs.

    truth: bool [U]. size: k, how many units a mask should keep, which is the number of true ones where there is a
    truth. labels: each unit's place and what it is for. ablation: fitted to the calibration data. needed: LongTensor
    [L, 2, G], how many directions of every head's keys and values the circuit needs, in the best basis. inert: the KL
    of what does not matter.
    """

    name: str
    seed: int
    ablation: Ablation
    unit: Unit
    masked: MaskedModel
    units: Units
    calibration: Batch
    evaluation: Batch
    truth: Tensor
    size: int
    labels: tuple[str, ...]
    certificate: Certificate = field(repr=False)
    needed: Tensor = field(repr=False)
    inert: float = 0.0

    def target_sparsity(self, view: MaskedModel) -> float:
        """The sparsity at which exactly as many units are kept as the circuit needs, in the basis of a view."""
        return 1 - (self.size if view.basis is None else int(self.needed.sum())) / self.units.count

    @property
    def model(self) -> PreTrainedModel:
        """The frozen model."""
        return self.masked.model

    @property
    def chance(self) -> float:
        """Precision and recall of a random mask of this size."""
        return int(self.truth.sum()) / self.units.count

    def kl(self, keep: Tensor) -> float:
        """KL(dense || masked) for keep, bool [U], mean over all positions of the evaluation data."""
        return kl_meter(self.masked, self.units, self.evaluation, self.ablation)(keep)

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

    def recovery_in_basis(self, view: MaskedModel, keep: Tensor) -> Recovery:
        """Compare a mask of directions, bool [U], with how many of them the circuit needs in each place.

        Directions have no names, so a hit is one of as many as a head's keys or values need, and recovery is exact
        where all counts agree and the model is the dense one but for what is inert.
        """
        keep = keep.cpu()
        place = [self.units.layer, (~self.units.has_key).long(), self.units.head]
        found = torch.zeros_like(self.needed).index_put_(tuple(place), keep.long(), accumulate=True)
        kl = kl_meter(view, self.units, self.evaluation, self.ablation)(keep)
        kept, true = int(keep.sum()), int(self.needed.sum())
        hits = int(torch.minimum(found, self.needed).sum())
        exact = bool((found == self.needed).all()) and kl <= max(
            10 * self.inert, 2 * self.certificate.truth_kl
        )
        missed, wrong = (
            tuple(
                f"layer {layer} {KIND_NAMES[kind]} head {head}: {int(count)} directions"
                for (layer, kind, head), count in zip(more.nonzero().tolist(), more[more > 0], strict=True)
            )
            for more in ((self.needed - found).clamp_min(0), (found - self.needed).clamp_min(0))
        )
        return Recovery(kept, kl, hits / max(kept, 1), hits / max(true, 1), exact, missed, wrong)

    def named(self, chosen: Tensor) -> tuple[str, ...]:
        """Labels of the units that are chosen, bool [U]."""
        return tuple(self.labels[number] for number in chosen.nonzero().flatten().tolist())


def kl_meter(
    masked: MaskedModel, units: Units, batch: Batch, ablation: Ablation
) -> Callable[[Tensor], float]:
    """A function of keep, bool [U]: KL(dense || masked), mean over all positions of a batch.

    The dense model runs once.
    """
    evaluator = Evaluator(masked, batch, ablation, at_once=len(batch), dense_bytes=2**30)

    def kl(keep: Tensor) -> float:
        # float32 rounds the KL of equal distributions to either side of 0
        return max(evaluator.mean(units.to_channels(keep.float()), KL), 0.0)

    return kl


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
        lines.append(
            f"layer {place['layer'][first]} {kind} head {place['head'][first]} channel {numbers}: {found}"
        )
    return tuple(lines)


def purpose(label: str) -> str:
    """What a unit is for, without its place and the number of its token or position."""
    return re.sub(r" of (token|position|pair) \d+", "", label.split(": ", 1)[1])
