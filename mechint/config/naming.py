"""Names and directories that configurations are made of."""

from __future__ import annotations

import os
import re
from glob import glob
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from mechint.errors import UserError


def slug(text: str) -> str:
    """A short name of a path, URL or hub id that is safe in a directory name."""
    path = Path(re.sub(r"^bundled:", "", str(text)))
    generic = {"model", "ckpt", "checkpoint", "pytorch_model"}
    name = path.stem if path.suffix in {".pt", ".pth", ".safetensors", ".gguf"} else path.name
    if name in generic and path.parent.name:
        name = path.parent.name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "model"


def job_directory(wanted: str | None, otherwise: str) -> str:
    """The directory asked for; where none was, `otherwise`, with -2, -3, ... when that exists.

    Two runs started in the same second do not share a directory.
    """
    if wanted:
        return wanted
    candidate, number = otherwise, 2
    while Path(candidate).exists():
        candidate, number = f"{otherwise}-{number}", number + 1
    return candidate


def files(pattern: str) -> str:
    """The files that match a glob, in natural order, quoted for Hydra's sweep grammar.

    Raises UserError when nothing matches, where Hydra would silently start no job at all.
    """
    names = sorted(glob(os.path.expanduser(pattern), recursive=True), key=_natural)  # noqa: PTH111, PTH207
    if not names:
        raise UserError(
            f"no file matches checkpoint_glob={pattern!r}; check the path, relative to {Path.cwd()}"
        )
    return ",".join(QuotedString(name, Quote.single).with_quotes() for name in names)


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
