"""What two masks of one model share."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking import MaskedModel, Units, masks_by_layer
from mechint.masking.basis import Basis
from mechint.masking.masks import LayerMask
from mechint.metrics.agreement import Agreement
from mechint.results import RunFiles
from mechint.results.circuit import RivalInfo
from mechint.results.mask_files import load_basis


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


def require_comparable(other: RunFiles, sha256: str | None, view: MaskedModel) -> None:
    """Raise UserError where another run's units are not those of this one: of other weights, or of another basis."""
    recorded = other.result.checkpoint
    if recorded.sha256 != sha256:
        raise UserError(
            f"rival_of={other.directory} is a run of {recorded.label}, with other weights than this checkpoint; a "
            "rival is a mask of the same model"
        )
    basis = load_basis(view.space, other.directory)
    if not same_basis(basis, view.basis):
        raise UserError(
            f"rival_of={other.directory} keeps {named_basis(basis)} and this run {named_basis(view.basis)}, which have "
            "nothing in common; use basis=channels for both"
        )


def same_basis(one: Basis | None, other: Basis | None) -> bool:
    """Whether two masks refer to the same coordinates."""
    if one is None or other is None:
        return one is other
    if (one.names, one.keys) != (other.names, other.keys):
        return False
    return all(torch.equal(a.read, b.read) for a, b in zip(one.maps, other.maps, strict=True))


def named_basis(basis: Basis | None) -> str:
    """What a mask keeps, in words."""
    if basis is None:
        return "channels"
    keys, values = basis.names
    return (
        f"directions of its own basis={keys}" if keys == values else f"directions of its own {keys}, {values}"
    )
