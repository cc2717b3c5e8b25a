"""K masks that LeanK publishes, read as masks of this package.

Source: microsoft/MInference, minference/configs/leank/*.pth.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.imports.imported import run_of_masks
from mechint.masking.masks import LayerMask, MaskSet
from mechint.results import RunFiles
from mechint.results.find import natural
from mechint.runtime.pickles import PickleRefusedError, load_plain

NOTES = [
    "These are K masks of LeanK: every V channel is kept. LeanK itself keeps whole keys for the first and "
    "the latest tokens and drops V in heads without any K channel; neither is part of these masks. Nothing "
    "was measured here.",
]

# What rebuilding a numpy array from a pickle takes, and nothing else: none of it runs code of the file.
_ARRAY_PARTS: list[Any] = [
    *((np.zeros(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")},
]


def read_leank(path: str | Path) -> MaskSet:
    """K masks from a LeanK file; every V channel is kept.

    The file holds one tensor [L, G, C], or a list or dictionary over layers of tensors or numpy arrays [G,
    C], all of zeros and ones. Layers are named as in Llama and Qwen, "model.layers.N.self_attn"; V has as
    many channels as K there. Raises UserError for other content; nothing in the file is executed.
    """
    path = Path(path)
    layers = [_tensor(layer) for layer in _layers(_load(path))]
    if not layers or any(layer is None or not _is_mask(layer) for layer in layers):
        raise UserError(
            f"{path} is not a LeanK mask file, which holds zeros and ones of shape [KV heads, channels] per "
            "layer"
        )
    masks = {}
    for number, layer in enumerate(layers):
        assert layer is not None
        keep, ones = layer.bool(), torch.ones_like(layer, dtype=torch.bool)
        masks[f"model.layers.{number}.self_attn"] = LayerMask(keep, ones, keep.float(), ones.float())
    return masks


def read_leank_run(path: str | Path) -> RunFiles:
    """The masks of a LeanK file as a run without metrics, to compare other masks with."""
    return run_of_masks(Path(path), read_leank(path), "LeanK", tie_kv=False, notes=NOTES)


def _load(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_ARRAY_PARTS):
            return load_plain(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; give a mask file of LeanK (.pth)") from error
    except PickleRefusedError as error:
        raise UserError(
            f"{path} cannot be read ({error}); if you trust it, re-save it as tensors: "
            f"m = torch.load({path.name!r}, weights_only=False); "
            "torch.save([torch.as_tensor(x) for x in m], 'masks.pth')"
        ) from error


def _layers(content: object) -> list[object]:
    """The entries by layer: of a dictionary in the natural order of its keys."""
    if isinstance(content, Mapping):
        return [content[key] for key in sorted(content, key=lambda key: natural(str(key)))]
    if isinstance(content, (Tensor, np.ndarray)):
        return list(content) if content.ndim == 3 else []
    return list(content) if isinstance(content, (list, tuple)) else []


def _tensor(value: object) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(np.ascontiguousarray(value))
    return value if isinstance(value, Tensor) else None


def _is_mask(layer: Tensor) -> bool:
    return layer.ndim == 2 and layer.numel() > 0 and bool(((layer == 0) | (layer == 1)).all())
