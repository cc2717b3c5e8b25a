"""The files of a finished mask."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.basis import Basis, Maps, Where
from mechint.masking.masks import TENSORS, LayerMask, MaskSet
from mechint.masking.space import ChannelSpace
from mechint.runtime.files import one_entry, told_in, write_atomically
from mechint.runtime.pickles import PickleRefusedError, load_plain

# The maps of a basis other than the channels.
BASIS = "basis.safetensors"


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


def save_basis(space: ChannelSpace, basis: Basis, directory: Path) -> Path:
    """Write basis.safetensors, atomically: "<module path>.<k or v>_<read or write>", float32 [G, C, C].

    With keys k [T, C] of a KV head in float32, before or after the rotation as `keys` in the header says, the mask's
    keys are k - (k read * removed) write, `removed` 1 for the directions that the mask removes; likewise for values.
    """
    tensors = {}
    for (position, kind), maps in zip(space.slices, basis.maps, strict=True):
        for name in ("read", "write"):
            tensors[f"{space.layers[position].name}.{kind}_{name}"] = (
                getattr(maps, name).detach().cpu().contiguous()
            )
    if basis.energy is not None:
        tensors["energy"] = basis.energy.float().cpu().contiguous()
    told = {"keys": basis.keys, "names": list(basis.names), "layers": [layer.name for layer in space.layers]}
    path = directory / BASIS
    with write_atomically(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=one_entry(told)))
    return path


def load_energy(directory: Path) -> Tensor | None:
    """What each direction is worth to the basis of a run's masks, [N] in the order of the channels; None for channels.

    Raises UserError where the basis's file is damaged.
    """
    try:
        with safe_open(directory / BASIS, framework="pt") as file:
            return file.get_tensor("energy") if "energy" in file.keys() else None  # noqa: SIM118
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory / BASIS} cannot be read ({error}); run the analysis again, or remove it to draw without it"
        ) from error


def load_basis(space: ChannelSpace, directory: Path) -> Basis | None:
    """The basis of a run's masks; None where they are of channels.

    Raises UserError where its file is damaged or of another model.
    """
    path = directory / BASIS
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = told_in(file.metadata())
            maps = [
                Maps(
                    *(file.get_tensor(f"{space.layers[i].name}.{kind}_{name}") for name in ("read", "write"))
                )
                for i, kind in space.slices
            ]
            first, second = told["names"]
            energy = file.get_tensor("energy") if "energy" in file.keys() else None  # noqa: SIM118
            if told["keys"] not in get_args(Where):
                raise ValueError(f"keys={told['keys']}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as the basis of this model ({error}); run the analysis again"
        ) from error
    for one, (i, kind) in zip(maps, space.slices, strict=True):
        layer = space.layers[i]
        width = layer.width(kind)
        if not tuple(one.read.shape) == tuple(one.write.shape) == (layer.num_kv_heads, width, width):
            raise UserError(f"{path} is the basis of another model; use the checkpoint it was made for")
    return Basis.fixed((str(first), str(second)), told["keys"], maps, energy)
