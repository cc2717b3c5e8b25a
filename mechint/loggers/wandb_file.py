"""Reading the run file that Weights & Biases keeps on disk."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechint.runtime.files import require_room

MAGIC = b":W&B"
FILE_HEADER = 7
BLOCK = 32768
WHOLE, LAST = 1, 4
FLUSH_SECONDS = 15.0
FULL_DISK_SECONDS = 1.0


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file in the order of writing, up to the first one that is cut off.

    The file is framed like a LevelDB log: a header, then blocks of 32 KiB filled with pieces of
    `<crc u32><length u16><kind u8><payload>`, where a piece is a whole record or its first, middle or last
    part. A record is a protobuf message.
    """
    from wandb.proto import wandb_internal_pb2 as protocol

    data, position, payload = path.read_bytes(), FILE_HEADER, b""
    while position + 7 <= len(data):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < 7:
            position += left_in_block
            continue
        _crc, length, kind = struct.unpack("<IHB", data[position : position + 7])
        piece = data[position + 7 : position + 7 + length]
        if len(piece) < length:
            return
        payload += piece
        position += 7 + length
        if kind in (WHOLE, LAST):
            yield protocol.Record.FromString(payload)  # type: ignore[attr-defined]  # made at import
            payload = b""


def where_cut_off(path: Path) -> str | None:
    """How far the file goes if it lacks the end of its run, else None.

    W&B writes it from a process of its own, which says nothing to its caller when the disk is full; only
    the exit code, which is written last, shows that nothing is missing. A file of an unknown format counts
    as complete.
    """
    magic = path.read_bytes()[: len(MAGIC)] if path.exists() else b""
    if magic and magic != MAGIC:
        return None
    last = "before the first step"
    if not magic:
        return last
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "exit":
            return None
        if kind == "history":
            last = f"after step {record.history.step.num}"
    return last


def wait_for_end(file: Path) -> str | None:
    """Where a run file ends too early, once its writer has had the time to end it.

    An offline run's finish() returns while W&B's own process is still writing. On a full disk there is little
    to wait for.
    """
    started = time.monotonic()
    while last := where_cut_off(file):
        waited = time.monotonic() - started
        if waited > FLUSH_SECONDS or (waited > FULL_DISK_SECONDS and not _has_room(file.parent)):
            break
        time.sleep(0.02)
    return last


def _has_room(directory: Path) -> bool:
    try:
        require_room(directory)
    except OSError:
        return False
    return True
