"""What is known of every channel from several seeds, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.space import ChannelSpace, Kind
from mechint.runtime.files import one_entry, told_in, write_atomically

FILENAME = "stability.safetensors"
TENSORS = ("frequency", "necessity", "necessity_error", "unit")


@dataclass(frozen=True)
class KindEvidence:
    """One layer's K or V channels, each [G, C].

    frequency: fraction of seeds that keep the channel. necessity: rise of the KL in nats per token when its unit alone
    is removed from the consensus mask, NaN where that was not tried. necessity_error: its standard error. unit: number
    of the unit, which several channels may share.
    """

    frequency: Tensor
    necessity: Tensor
    necessity_error: Tensor
    unit: Tensor


# By (module path, kind), in layer order.
Evidence = dict[tuple[str, Kind], KindEvidence]


def evidence_of(space: ChannelSpace, **flat: Tensor) -> Evidence:
    """Cut tensors [N], named as in KindEvidence, by layer and kind."""
    return {
        (space.layers[position].name, kind): KindEvidence(
            **{name: space.view(flat[name].cpu(), position, kind).clone() for name in TENSORS}
        )
        for position, kind in space.slices
    }


def save_evidence(evidence: Evidence, directory: Path, metadata: Mapping[str, str]) -> Path:
    """Write stability.safetensors, atomically: "<module path>.<k or v>_<tensor>"."""
    path = directory / FILENAME
    tensors = {
        f"{layer}.{kind}_{name}": getattr(part, name).contiguous()
        for (layer, kind), part in evidence.items()
        for name in TENSORS
    }
    keys = [list(key) for key in evidence]
    with write_atomically(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=one_entry({**metadata, "parts": keys})))
    return path


def load_evidence(directory: Path) -> Evidence:
    """Read a run's stability.safetensors. Raises UserError where it is missing or damaged."""
    path = directory / FILENAME
    try:
        with safe_open(path, framework="pt") as file:
            parts: list[Any] = told_in(file.metadata())["parts"]
            return {
                (layer, kind): KindEvidence(
                    **{name: file.get_tensor(f"{layer}.{kind}_{name}") for name in TENSORS}
                )
                for layer, kind in parts
            }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the analysis again") from error
