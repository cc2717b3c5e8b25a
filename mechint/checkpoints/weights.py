"""Which weight files belong to a directory, and their tensors."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mechint.checkpoints.pickles import read_pickle, refuse_placeholder
from mechint.errors import UserError, one_line

# In order of preference; each may instead be sharded, with an index file of the same name.
_WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The weight file or shards of a Hugging Face directory.

    Raises `UserError` for a directory without weights, and for an index whose shards are not all there.
    """
    for name in _WEIGHT_NAMES:
        if (directory / name).is_file():
            return (directory / name,)
        if (index := directory / f"{name}.index.json").is_file():
            return _shards(index)
    raise UserError(f"{directory} holds no weights ({' or '.join(_WEIGHT_NAMES)}){_advice(directory)}")


def read_weights(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """All tensors of the files by name, on the CPU, possibly memory-mapped.

    Raises `UserError` for damaged files and for pickles that hold more than weights.
    """
    weights: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            weights.update(_read_safetensors(file))
        else:
            weights.update(read_pickle(file))
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises `UserError` for anything else.
    """
    refuse_placeholder(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({one_line(error, 100)}); copy or save it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object; copy or save it again")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    refuse_placeholder(path)
    try:
        return load_file(path)
    except Exception as error:
        raise UserError(
            f"{path} is not a safetensors file, or damaged ({one_line(error, 100)}); copy or save it again"
        ) from error


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{index} does not list the shards beside it in `weight_map`; copy or save it again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent} lacks {len(missing)} of {len(names)} shards, e.g. {missing[0]}; copy it again"
        )
    return tuple(index.parent / name for name in names)


def checkpoint_inside(directory: Path) -> Path | None:
    """The newest checkpoint directory inside another, as trainers leave them; None where there is none."""
    inside = sorted(directory.glob("*/config.json"), key=lambda config: config.stat().st_mtime)
    return inside[-1].parent if inside else None


def _advice(directory: Path) -> str:
    for suffix in (".safetensors", ".gguf", ".pt", ".pth"):
        if found := sorted(directory.glob(f"*{suffix}")):
            return f"; if {found[0].name} is the checkpoint, give that file: checkpoint={found[0]}"
    if (newest := checkpoint_inside(directory)) is not None:
        return f"; give the directory of one checkpoint, e.g. checkpoint={newest}"
    if (directory / "zero_to_fp32.py").is_file():
        return "; put DeepSpeed's parts together first: python zero_to_fp32.py . . --safe_serialization"
    return "; save the model there with save_pretrained"
