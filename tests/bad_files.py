"""Files that no honest program wrote, or that an accident befell, for the table of bad input."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import nanogpt_weights, save_nanogpt

Put = Callable[[Path, Path], None]
"""Makes files in a directory (first argument), from a good checkpoint directory (second)."""


class Payload:
    """A pickle that leaves a file called `proof` if it is ever executed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("open('proof', 'w').close()",))


def file(name: str, content: bytes | Callable[[], bytes] = b"") -> Put:
    """A file with this content, or with what is made when it is put there."""

    def put(here: Path, _: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content() if callable(content) else content)

    return put


def several(*puts: Put) -> Put:
    """All of these."""

    def put(here: Path, good: Path) -> None:
        for each in puts:
            each(here, good)

    return put


def directory(name: str) -> Put:
    """An empty directory."""
    return lambda here, _: (here / name).mkdir()


def pickled(name: str, content: Any) -> Put:
    """What torch.save makes of an object."""
    return lambda here, _: torch.save(content, here / name)


def bare_pickle(name: str, content: Any) -> Put:
    """What the standard library makes of an object."""
    return lambda here, _: (here / name).write_bytes(pickle.dumps(content))


def link(name: str, target: str) -> Put:
    """A symbolic link."""

    def put(here: Path, _: Path) -> None:
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).symlink_to(target)

    return put


def pipe(name: str) -> Put:
    """A named pipe, which whoever opens it waits for."""

    def put(here: Path, _: Path) -> None:
        (here / name).parent.mkdir(exist_ok=True)
        os.mkfifo(here / name)

    return put


def nanogpt(change: Callable[[dict[str, torch.Tensor]], Any] = lambda _: None, **settings: Any) -> Put:
    """m.pt, a nanoGPT checkpoint, after a change of its weights."""

    def put(here: Path, _: Path) -> None:
        weights = nanogpt_weights(bias=False)
        change(weights)
        save_nanogpt(here / "m.pt", weights, **settings)

    return put


def model(**changes: Any) -> Put:
    """The directory m, a copy of the good checkpoint with other entries in config.json; None takes one away."""

    def put(here: Path, good: Path) -> None:
        shutil.copytree(good, here / "m")
        config = json.loads((here / "m" / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (here / "m" / "config.json").write_text(json.dumps(kept))

    return put


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Put:
    """The directory m, a copy of the good checkpoint after a change of its weights."""

    def put(here: Path, good: Path) -> None:
        shutil.copytree(good, here / "m")
        tensors = load_file(here / "m" / "model.safetensors")
        change(tensors)
        save_file(tensors, here / "m" / "model.safetensors", {"format": "pt"})

    return put


def in_model(name: str, content: bytes | Callable[[bytes], bytes]) -> Put:
    """The directory m, a copy of the good checkpoint with one file replaced."""

    def put(here: Path, good: Path) -> None:
        shutil.copytree(good, here / "m")
        path = here / "m" / name
        path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))

    return put


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def safetensors_header(size: int, text: bytes = b"{}") -> bytes:
    """A safetensors file whose header says that it is so many bytes long."""
    return struct.pack("<Q", size) + text


def safetensors_shape(shape: list[int], bytes_: int) -> bytes:
    """A safetensors file with one tensor that claims to be larger than the file."""
    entry = {"lm_head.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, bytes_]}}
    text = json.dumps(entry).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


def gguf(tensors: int, entries: int, tail: bytes = b"") -> bytes:
    """The beginning of a GGUF file."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + tail


def gguf_array(length: int) -> bytes:
    """A GGUF file with one metadata entry, an array of so many numbers."""
    key = b"general.architecture"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 4, length)
    return gguf(0, 1, entry)


def gguf_tensor(size: int) -> bytes:
    """A GGUF file of one tensor that claims to have size * size numbers."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    architecture = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    tensor = text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, size, size, 0, 0)
    return gguf(1, 1, architecture + tensor + bytes(256))


def bomb(gigabytes: float) -> bytes:
    """A torch archive of a few kilobytes whose one storage unpacks to gigabytes of zeros."""
    buffer = io.BytesIO()
    torch.save({"model": {"transformer.wte.weight": torch.zeros(4)}}, buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            if not entry.filename.endswith("data/0"):
                target.writestr(entry.filename, source.read(entry))
                continue
            with target.open(entry.filename, "w", force_zip64=True) as stream:
                for _ in range(int(gigabytes * 64)):
                    stream.write(bytes(2**24))
    return packed.getvalue()


def run_directory(**changes: Any) -> Put:
    """The directory run with a result.json that says `done`, and other files next to it."""

    def put(here: Path, _: Path) -> None:
        (here / "run").mkdir()
        result = {
            "schema_version": 1,
            "status": "done",
            "checkpoint": {"source": "x", "name": "x"},
            "config": {},
        }
        result |= {name: {} for name in ("mask", "sparsity", "channels")}
        result |= {"metrics": {"dense": {"loss": 1.0}}, "layers": [{"name": "a", "index": 0}], **changes}
        (here / "run" / "result.json").write_text(json.dumps(result))

    return put
