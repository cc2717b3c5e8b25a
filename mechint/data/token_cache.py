"""Token streams on disk, named by what they were made of, so that the jobs of a sweep tokenise a text once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from mechint.data.packing import TokenStream
from mechint.runtime.files import write_atomically

# MECHINT_CACHE=DIRECTORY puts the cache elsewhere; with nothing after the = there is none.
VARIABLE = "MECHINT_CACHE"

# Entries that were not used for longest make room for new ones above this many bytes.
CAPACITY = 4 * 2**30


def cached(content: Iterable[bytes], make: Callable[[], TokenStream]) -> TokenStream:
    """The stream made of this content, memory-mapped from the cache, or else made and left there.

    Files are written whole or not at all, so processes that make the same stream at once do not disturb each other. A
    cache that cannot be read or written is as good as none.
    """
    root = directory()
    if root is None:
        return make()
    digest = hashlib.sha256()
    for part in content:
        digest.update(len(part).to_bytes(8, "little") + part)
    entry = root / digest.hexdigest()
    with suppress(OSError, ValueError, EOFError):  # not there, or damaged
        return _read(entry)
    stream = make()
    with suppress(OSError):
        _write(entry, stream)
        _make_room(root, keep=entry)
    return stream


def directory() -> Path | None:
    """Where the cache is; None where it is switched off."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen).expanduser() / "tokens" if chosen else None
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "mechint" / "tokens"


def _read(entry: Path) -> TokenStream:
    ids = np.load(entry / "ids.npy", mmap_mode="r")
    others = [entry / "byte_counts.npy", entry / "starts.npy"]
    stream = TokenStream(ids, *(np.load(path, mmap_mode="r") if path.exists() else None for path in others))
    os.utime(entry)
    return stream


def _write(entry: Path, stream: TokenStream) -> None:
    """The ids last: an entry with ids is whole."""
    files = {"byte_counts.npy": stream.byte_counts, "starts.npy": stream.starts, "ids.npy": stream.ids}
    for name, values in files.items():
        if values is not None:
            with write_atomically(entry / name) as temporary:
                np.save(temporary, values.astype(np.int64 if name == "starts.npy" else np.int32))


def _make_room(root: Path, keep: Path) -> None:
    """Remove entries that were not used for longest; who has one mapped keeps it."""
    sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in root.iterdir()}
    for entry in sorted(sizes, key=lambda entry: entry.stat().st_mtime):
        if sum(sizes.values()) <= CAPACITY:
            return
        if entry != keep:
            (entry / "ids.npy").unlink(missing_ok=True)
            for name in ("byte_counts.npy", "starts.npy"):
                (entry / name).unlink(missing_ok=True)
            with suppress(OSError):  # someone else writes there
                entry.rmdir()
            del sizes[entry]
