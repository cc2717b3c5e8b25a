"""Ready tokens: flat binary files, as nanoGPT, llm.c and NumPy write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mechint.data.dataset import RunningText, Sides, safe_title
from mechint.data.packing import TokenStream
from mechint.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8", "uint64": "<u8"}
EVALUATION_FRACTION = 0.1

# Names of the two sides in a directory, by preference.
SIDES = (("train.bin", "val.bin"), ("train.npy", "val.npy"))

NUMPY_MAGIC = b"\x93NUMPY"
# The first number of llm.c's header of 256 32-bit numbers, and what its tokens are stored as (dev/data/data_common.py).
LLM_C_HEADER = 256 * 4
LLM_C_MAGIC = {20240520: "uint16", 20240801: "uint32"}


@dataclass(kw_only=True)
class TokenFiles(RunningText):
    """Token ids, memory-mapped: flat files, .npy files (`np.save`), and files with llm.c's header.

    path: a directory with train.bin (calibration) and val.bin (evaluation), or one file, whose last 10 % is
    the evaluation side. dtype: how flat files store a token; files with a header say so themselves.
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
            calibration, evaluation = (self._read(file) for file in _pair(path))
            return Sides(TokenStream(calibration, None), TokenStream(evaluation, None))
        ids = self._read(path)
        cut = len(ids) - round(len(ids) * EVALUATION_FRACTION)
        note = f"one file: the last {100 * EVALUATION_FRACTION:g} % of its tokens is for evaluation"
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
        try:
            size = file.stat().st_size
            with file.open("rb") as stream:
                head = stream.read(LLM_C_HEADER)
        except OSError as error:
            raise UserError(
                f"cannot read {file} ({error.strerror}): dataset.path must be a token file, or a directory "
                "with train.bin and val.bin"
            ) from None
        if not size:
            raise UserError(f"{file} is not a file of tokens (it is empty): give another dataset.path")
        if other := _something_else(head):
            raise UserError(f"{file} is {other}, not a file of tokens: give another dataset.path")
        if head.startswith(NUMPY_MAGIC):
            ids = _read_npy(file)
        elif len(head) == LLM_C_HEADER and int.from_bytes(head[:4], "little") in LLM_C_MAGIC:
            ids = _read_llm_c(file, head, size)
        else:
            ids = self._read_flat(file, size)
        if len(ids) and ids.min() < 0:
            raise UserError(
                f"{file} holds negative token ids: it was written as another type; give dataset.dtype= one of "
                f"{', '.join(DTYPES)}"
            )
        return ids

    def _read_flat(self, file: Path, size: int) -> np.ndarray:
        dtype = np.dtype(DTYPES[self.dtype])
        if size % dtype.itemsize:
            problem = f"{size} bytes are no whole number of {self.dtype} tokens"
            raise UserError(f"{file} is not a file of tokens ({problem}): give another dataset.path or dtype")
        if (width := _bytes_per_token(file, size)) > dtype.itemsize:
            remedy = "uint32" if width == 4 else "int64"
            raise UserError(f"{file} holds {8 * width}-bit token ids: give dataset.dtype={remedy}")
        return np.memmap(file, dtype=dtype, mode="r")


def _pair(directory: Path) -> tuple[Path, Path]:
    """The files of both sides in a directory; those of the first kind where there are no token files at all.

    Raises UserError where token files have other names.
    """
    for names in SIDES:
        files = (directory / names[0], directory / names[1])
        if any(file.is_file() for file in files):
            return files
    others = sorted(file.name for file in directory.iterdir() if file.suffix in (".bin", ".npy"))
    if others:
        raise UserError(
            f"{directory} has no train.bin and val.bin, but {', '.join(others[:4])}: give one file"
        )
    return directory / SIDES[0][0], directory / SIDES[0][1]


def _something_else(head: bytes) -> str | None:
    """What a file is whose first bytes are those of no token file, None where they may be."""
    if head.startswith(b"PK\x03\x04"):
        return "an archive (.npz, .pt or .zip)"
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        return "compressed"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # no character that was cut
            return None
        text = head[: error.start].decode("utf-8")
    readable = all(letter.isprintable() or letter in "\n\r\t" for letter in text)
    return "text (for dataset=text)" if len(text) > 64 and readable else None


def _read_npy(file: Path) -> np.ndarray:
    try:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{file} is not a whole .npy file ({error}): save it again with np.save") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(
            f"{file} holds an array of {ids.dtype} with {ids.ndim} axes: save a flat array of whole numbers, for "
            "example np.save(file, ids.astype(np.uint16).ravel())"
        )
    return ids


def _read_llm_c(file: Path, head: bytes, size: int) -> np.ndarray:
    """The ids after llm.c's header: its magic number, a version and the number of tokens."""
    magic, _, count = (int(number) for number in np.frombuffer(head, "<i4", 3))
    dtype = np.dtype(DTYPES[LLM_C_MAGIC[magic]])
    there = (size - LLM_C_HEADER) // dtype.itemsize
    if count != there:
        raise UserError(f"{file} says that it holds {count:,} tokens but has {there:,}: copy it again")
    return np.memmap(file, dtype=dtype, mode="r", offset=LLM_C_HEADER)


def _bytes_per_token(file: Path, size: int) -> int:
    """How many bytes a token takes, by which bytes of the first ones are zero: 2, 4 or 8.

    No vocabulary has more than 2^18 tokens, so the upper part of a wider number is nearly always zero.
    """
    units = np.memmap(file, dtype="<u2", mode="r", shape=(size // 2,))[:65_536]
    if len(units) < 8:
        return 2
    lowest, second, *upper = units[: len(units) // 4 * 4].reshape(-1, 4).T  # by their place in 64-bit numbers
    if second.max() <= 3 < lowest.max() and not any(part.any() for part in upper):
        return 8
    return 4 if units[1::2].max() <= 3 < units[::2].max() else 2
