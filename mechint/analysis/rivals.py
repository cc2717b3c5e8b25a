"""What two masks of one model share."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.masking import Units, masks_by_layer
from mechint.masking.masks import LayerMask
from mechint.metrics.agreement import Agreement
from mechint.results import RunFiles
from mechint.results.circuit import RivalInfo


def layer_masks(units: Units, keep: Tensor) -> list[LayerMask]:
    """A mask keep, bool [U], layer by layer."""
    kept = units.to_channels(keep.cpu())
    return list(masks_by_layer(units.space, kept, torch.zeros(len(kept))).values())


def overlap(units: Units, first: Tensor, second: Tensor) -> Agreement:
    """How far two masks of the same units, bool [U] each, agree."""
    return Agreement.of([layer_masks(units, first), layer_masks(units, second)])


def rival_info(other: RunFiles, units: Units, keep: Tensor) -> RivalInfo:
    """The overlap of a mask keep, bool [U], with another run's."""
    own = layer_masks(units, keep)
    agreement = Agreement.of([own, other.layer_masks])
    shared = sum(
        int((mine.k_mask & theirs.k_mask).sum()) + int((mine.v_mask & theirs.v_mask).sum())
        for mine, theirs in zip(own, other.layer_masks, strict=True)
    )
    return RivalInfo(
        of=str(other.directory),
        shared=shared,
        iou=None if agreement.iou is None else agreement.iou.mean,
        chance=None if agreement.chance is None else agreement.chance.mean,
    )
