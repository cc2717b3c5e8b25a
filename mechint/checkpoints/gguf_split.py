"""GGUF files in several parts, put together for transformers, which reads only whole ones."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechint.checkpoints.gguf_reader import gguf_reader
from mechint.errors import UserError, one_line

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


def gguf_parts(file: Path) -> tuple[Path, ...]:
    """All parts of the file that one part belongs to, in their order; the file itself where it is whole.

    Raises UserError where parts are missing.
    """
    name = _PART.fullmatch(file.name)
    if name is None:
        return (file,)
    count = int(name["count"])
    parts = [
        file.parent / f"{name['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise UserError(
            f"{file.parent} lacks {len(missing)} of {count} parts, e.g. {missing[0]}; copy them there"
        )
    return tuple(parts)


@contextmanager
def whole_gguf(parts: tuple[Path, ...]) -> Iterator[Path]:
    """One file with everything that is in the parts, in a temporary directory where there are several.

    Raises UserError for damaged parts.
    """
    if len(parts) == 1:
        yield parts[0]
        return
    with tempfile.TemporaryDirectory(prefix="mechint-") as directory:
        whole = Path(directory) / "whole.gguf"
        try:
            _merge(parts, whole)
        except UserError:
            raise
        except Exception as error:  # of many kinds, for entries that are damaged
            raise UserError(
                f"{parts[0]} and its other parts cannot be put together ({one_line(error, 100)}); copy them again"
            ) from error
        yield whole


def _merge(parts: tuple[Path, ...], whole: Path) -> None:
    from gguf import GGUFValueType, GGUFWriter

    readers = [gguf_reader(part) for part in parts]
    first = readers[0]
    writer = GGUFWriter(whole, str(first.fields["general.architecture"].contents()))
    for name, field in first.fields.items():
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        kind = field.types[0]
        inner: Any = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
