"""What a mask shares with that of a run that it was to differ from."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.masking import Units, masks_by_layer
from mechint.metrics.agreement import Agreement
from mechint.results import RunFiles
from mechint.results.circuit import RivalInfo


def rival_info(other: RunFiles, units: Units, keep: Tensor) -> RivalInfo:
    """The overlap of a mask keep, bool [U], with another run's."""
    kept = units.to_channels(keep.cpu())
    own = list(masks_by_layer(units.space, kept, torch.zeros(len(kept))).values())
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
