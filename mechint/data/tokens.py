"""Ready tokens: the flat binary files that nanoGPT's prepare.py writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mechint.data.dataset import Dataset, Sides, safe_title
from mechint.data.packing import TokenStream
from mechint.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"uint16": "<u2", "uint32": "<u4"}
EVALUATION_FRACTION = 0.1


@dataclass(kw_only=True)
class TokenFiles(Dataset):
    """Token ids without a header, memory-mapped.

    path: a directory with train.bin (calibration) and val.bin (evaluation), or one file, whose last 10 % is
    the evaluation side. dtype: uint16 or uint32.
    """

    path: str | None = None
    dtype: str = "uint16"

    @property
    def title(self) -> str:
        return safe_title("tokens", Path(self.path or "").name)

    def sides(self, tokenizer: PreTrainedTokenizerBase | None, seed: int) -> Sides:
        """Ids of the files; no tokenizer is needed. Raises UserError if the files cannot be used."""
        if self.path is None:
            raise UserError("dataset=tokens needs a .bin file or a directory of them: give dataset.path=...")
        path = Path(self.path).expanduser()
        if path.is_dir():
            calibration, evaluation = self._read(path / "train.bin"), self._read(path / "val.bin")
            return Sides(TokenStream(calibration, None), TokenStream(evaluation, None))
        ids = self._read(path)
        cut = len(ids) - round(len(ids) * EVALUATION_FRACTION)
        note = f"one file: the last {100 * EVALUATION_FRACTION:g} % of its tokens is the evaluation side"
        return Sides(TokenStream(ids[:cut], None), TokenStream(ids[cut:], None), (note,))

    def vocabulary_message(self, highest: int, vocab_size: int, tokenizer_name: str) -> str:
        """What is wrong, and what to do, when a token id is outside the checkpoint's vocabulary."""
        other = "uint32" if self.dtype == "uint16" else "uint16"
        return (
            f"{self.path}, read as {self.dtype}, holds token id {highest}, but the checkpoint's vocabulary "
            f"has only {vocab_size} entries: give the checkpoint that these tokens were made for, or "
            f"dataset.dtype={other} if that is how they were written"
        )

    def _read(self, file: Path) -> np.ndarray:
        """The ids of one file, a read-only memory map [S]. Raises UserError if it is no such file."""
        if self.dtype not in DTYPES:
            raise UserError(f"dataset.dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        dtype = np.dtype(DTYPES[self.dtype])
        try:
            size = file.stat().st_size
            ids = np.memmap(file, dtype=dtype, mode="r") if size and size % dtype.itemsize == 0 else None
        except OSError as error:
            raise UserError(
                f"cannot read {file} ({error.strerror}): dataset.path must be a token file, or a directory "
                "with train.bin and val.bin"
            ) from None
        if ids is None:
            problem = f"{size} bytes are no whole number of {self.dtype} tokens" if size else "it is empty"
            raise UserError(f"{file} is not a file of tokens ({problem}): give another dataset.path")
        if self.dtype == "uint16" and _looks_like_uint32(ids):
            raise UserError(f"{file} holds 32-bit token ids: give dataset.dtype=uint32")
        return ids


def _looks_like_uint32(ids: np.ndarray) -> bool:
    """Whether every second number is one of the few that the upper half of a 32-bit token id can be."""
    head = ids[:65_536]
    return len(head) > 2 and head[1::2].max() <= 3 < head[::2].max()
