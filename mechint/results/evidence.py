"""What is known of every channel from several seeds, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.space import ChannelSpace, Kind
from mechint.runtime.files import one_entry, told_in, write_atomically

FILENAME = "stability.safetensors"
NECESSITY = ("necessity", "necessity_error", "necessity_p", "necessity_q")
TENSORS = ("frequency", *NECESSITY, "unit")

# Those that files of earlier versions lack.
LATER = ("necessity_p", "necessity_q")


@dataclass(frozen=True)
class KindEvidence:
    """One layer's K or V channels, each [G, C].

    frequency: fraction of seeds that keep the channel. necessity: rise of the KL in nats per token when its unit alone
    is removed from the consensus mask, NaN where that was not tried. necessity_error: its standard error. necessity_p:
    of the rise being 0, by a t test. necessity_q: false discovery rate over all units at which it is told from 0. unit:
    number of the unit, which several channels may share.
    """

    frequency: Tensor
    necessity: Tensor
    necessity_error: Tensor
    necessity_p: Tensor
    necessity_q: Tensor
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
            return {(layer, kind): KindEvidence(**_read(file, f"{layer}.{kind}_")) for layer, kind in parts}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the analysis again") from error


def _read(file: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors of one layer and kind; NaN for what an earlier version did not write."""
    present = set(file.keys())
    found = {
        name: file.get_tensor(prefix + name)
        for name in TENSORS
        if name not in LATER or prefix + name in present
    }
    unknown = torch.full_like(found["necessity"], torch.nan)
    return {**dict.fromkeys(LATER, unknown), **found}
