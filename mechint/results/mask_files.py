"""The files of a finished mask."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.masks import TENSORS, LayerMask, MaskSet
from mechint.runtime.files import one_entry, told_in, write_atomically
from mechint.runtime.pickles import PickleRefusedError, load_plain


def save_masks(masks: MaskSet, directory: Path, metadata: Mapping[str, str]) -> list[Path]:
    """Write final_masks.pt and final_masks.safetensors, atomically, and return their paths.

    The safetensors file holds "<module path>.<tensor>" and keeps the layers' order, and `metadata`, in its header.
    """
    pickled, flat = directory / "final_masks.pt", directory / "final_masks.safetensors"
    content = {
        name: {tensor: getattr(mask, tensor) for tensor in TENSORS} | {"sparsity": mask.sparsity}
        for name, mask in masks.items()
    }
    buffer = io.BytesIO()  # torch.save itself does not say that a disk is full, nor does save_file
    torch.save(content, buffer)
    with write_atomically(pickled) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    tensors = {
        f"{name}.{tensor}": getattr(mask, tensor).contiguous()
        for name, mask in masks.items()
        for tensor in TENSORS
    }
    with write_atomically(flat) as temporary:
        temporary.write_bytes(save(tensors, metadata=one_entry({**metadata, "layers": list(masks)})))
    return [pickled, flat]


def load_masks(path: Path) -> MaskSet:
    """Read a mask file (.safetensors or .pt); nothing in it is ever executed.

    Raises UserError for a missing, damaged or foreign file.
    """
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        return {name: _layer_mask(name, tensors, path) for name, tensors in content.items()}
    except FileNotFoundError as error:
        raise UserError(f"no mask file at {path}; give a finished run's final_masks.safetensors") from error


def _read_safetensors(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            layers = told_in(file.metadata())["layers"]
            return {
                name: {tensor: file.get_tensor(f"{name}.{tensor}") for tensor in TENSORS} for name in layers
            }
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a mask file ({error}); give a finished run's final_masks.safetensors"
        ) from error


def _read_pickle(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        content = load_plain(path)
    except PickleRefusedError as error:
        raise UserError(
            f"{path} cannot be read as a mask file ({error}); give a finished run's final_masks.pt"
        ) from error
    if not isinstance(content, dict) or not content or not all(isinstance(v, dict) for v in content.values()):
        raise UserError(f"{path} is not a mask file; give a finished run's final_masks.pt")
    return content


def _layer_mask(name: object, tensors: Mapping[str, object], path: Path) -> LayerMask:
    found = [tensors.get(tensor) for tensor in TENSORS]
    if not isinstance(name, str) or not all(
        isinstance(tensor, Tensor) and tensor.ndim == 2 for tensor in found
    ):
        raise UserError(
            f"{path}: layer {name!r} lacks {', '.join(TENSORS)} of shape [KV heads, channels]; it is not a mask file"
        )
    k_mask, v_mask, k_importance, v_importance = (tensor for tensor in found if isinstance(tensor, Tensor))
    if k_mask.shape != k_importance.shape or v_mask.shape != v_importance.shape:
        raise UserError(
            f"{path}: masks and importance of layer {name!r} differ in shape; the file is damaged"
        )
    return LayerMask(k_mask.bool(), v_mask.bool(), k_importance.float(), v_importance.float())
