"""What a `checkpoint=` string names: a bundled model, a file, a directory or a hub id."""

import os
from dataclasses import dataclass
from pathlib import Path

from mechint.checkpoints.bundled import bundled_directory, bundled_names
from mechint.checkpoints.hub import download_model, looks_like_hub_id
from mechint.errors import UserError

_FORMATS = {
    ".pt": "nanogpt",
    ".pth": "nanogpt",
    ".ckpt": "nanogpt",
    ".safetensors": "safetensors",
    ".gguf": "gguf",
}


@dataclass(frozen=True)
class Location:
    """A checkpoint's format and where it lies; `source` is how results name it, with absolute paths."""

    format: str
    path: Path
    source: str
    on_hub: bool = False


def locate(source: str, revision: str | None) -> Location:
    """Finds a checkpoint, downloading it if it is a hub id.

    Raises `UserError` if there is none, or several.
    """
    if not source.strip():
        raise UserError("checkpoint= is empty; give a file, a directory, a hub id or bundled:NAME")
    if source.startswith("bundled:"):
        return Location("bundled", bundled_directory(source.removeprefix("bundled:")), source)
    path = Path(os.path.abspath(Path(source).expanduser()))  # noqa: PTH100 (keeps symbolic links)
    if path.is_dir():
        return Location("huggingface", path, str(path))
    if path.is_file():
        return Location(_format(path), path, str(path))
    if os.path.lexists(path):
        raise UserError(
            f"{path} is not a file (a pipe, a device or a broken link); give a file or a directory"
        )
    if any(character in source for character in "*?[") or source.startswith("glob("):
        raise UserError(
            f"checkpoint={source} is a pattern, not one checkpoint; to analyse several: "
            f"-m sweep=checkpoints 'checkpoint_glob={source.removeprefix('glob(').removesuffix(')')}'"
        )
    if source in bundled_names():
        raise UserError(f"checkpoint {source}: did you mean checkpoint=bundled:{source}?")
    if path.suffix.lower() in _FORMATS or not looks_like_hub_id(source):
        raise UserError(f"checkpoint {source}: there is no such file or directory; {_nearby(path)}")
    return Location("huggingface", download_model(source, revision), source, on_hub=True)


def _format(path: Path) -> str:
    if path.suffix.lower() not in _FORMATS:
        raise UserError(
            f"{path}: files ending in {path.suffix or 'nothing'} cannot be read; give a "
            f"{', '.join(_FORMATS)} file, or the directory it is in: checkpoint={path.parent}"
        )
    return _FORMATS[path.suffix.lower()]


def _nearby(path: Path) -> str:
    there = sorted(other.name for other in path.parent.glob("*") if other.suffix.lower() in _FORMATS)
    if there:
        return f"{path.parent} holds {', '.join(there[:4])}{' ...' if len(there) > 4 else ''}"
    if not path.parent.is_dir():
        return f"{path.parent} does not exist either"
    return f"{path.parent} holds no checkpoint files"
