"""Reading GGUF files whose counts and lengths nobody has checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechint.errors import UserError, one_line

if TYPE_CHECKING:
    from gguf import GGUFReader


def gguf_reader(file: Path) -> GGUFReader:
    """The entries and tensors of a GGUF file, all of which lie within it.

    Raises UserError for a file that is damaged or none. What reads the same file afterwards, as transformers does with
    the package's own reader, finds nothing in it that points past its end.
    """
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """The package's reader takes what lies past the end for empty values, as many as the file claims to hold."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            end = int(offset) + int(count) * np.dtype(dtype).itemsize
            if end > len(self.data):
                raise ValueError(f"it has {len(self.data)} bytes and claims to have {end}")
            return super()._get(offset, dtype, count, override_order)

    try:
        return Reader(file)
    except Exception as error:  # the reader raises many kinds for damaged files
        raise UserError(
            f"{file} is not a GGUF file, or a damaged one ({one_line(error, 100)}); copy it again"
        ) from error
