"""Documents from any dataset that the `datasets` library reads, on the Hub or local."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechint.data.dataset import safe_title
from mechint.data.splits import Document, DocumentSplit, split_documents
from mechint.data.text_dataset import POOL, TextDataset
from mechint.data.tokenise import DocumentEncoder
from mechint.errors import UserError

# Part of a split: bounds in rows or, with %, in per cent of all rows; negative ones count from the end.
SLICE = re.compile(r"[\w.-]+\[(?P<first>-?\d+%?)?:(?P<last>-?\d+%?)?\]")


# What `save_to_disk` leaves in a directory, for one split or several.
SAVED = ("state.json", "dataset_dict.json")


@dataclass(kw_only=True)
class HuggingFaceText(TextDataset):
    """One text column of a dataset, streamed and read only as far as needed.

    name: a Hub id; or parquet, json, csv, tsv, text for local data_files. config_name, data_files: as
    `datasets.load_dataset` takes them. split: one, several (a+b), or slices of them (train[:10%], train[1000:2000]).
    text_column: the column with the documents; outer.inner for a nested one.
    """

    name: str | None = None
    config_name: str | None = None
    split: str = "train"
    text_column: str = "text"
    data_files: str | list[str] | None = None

    @property
    def title(self) -> str:
        return safe_title("hf", self.name, self.config_name)

    def document_split(self, encoder: DocumentEncoder) -> DocumentSplit:
        """The first documents of the stream, as many as fill both sides.

        What is held out depends on evaluation_tokens only, never on how much calibration text is read.
        """
        wanted = {False: self.calibration_tokens, True: self.evaluation_tokens}  # by Document.held_out
        useful = {False: POOL * self.calibration_tokens, True: self.evaluation_tokens}
        found = {False: 0, True: 0}
        documents: list[Document] = []
        notes: tuple[str, ...] = ()
        for number, text in enumerate(self._texts(), start=1):
            document = Document.of(text)
            side = document.held_out(self.evaluation_fraction)
            if found[side] <= useful[side]:
                documents.append(document)
                found[side] += sum(len(encoder.encode(piece).ids) for piece in document.pieces())
            # One token more than wanted, because the first is never a target.
            if all(found[side] > wanted[side] for side in wanted):
                notes = (f"the first {number:,} documents of the stream, in stored order",)
                break
        split = split_documents(documents, self.evaluation_fraction)
        return split._replace(notes=split.notes + notes)

    def _texts(self) -> Iterator[str]:
        """The text column row by row, without empty rows. Raises UserError if there is no such column."""
        for row in self._rows():
            columns = _columns(row)
            if self.text_column not in columns:
                raise UserError(
                    f"dataset {self.name} has no column {self.text_column!r}: give dataset.text_column= one "
                    f"of {', '.join(sorted(columns))}"
                )
            text = columns[self.text_column]
            if not isinstance(text, str | None):
                raise UserError(
                    f"column {self.text_column!r} of dataset {self.name} holds {type(text).__name__}, "
                    "not text: give another dataset.text_column"
                )
            if text and text.strip():
                yield text

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows in stored order. Raises UserError if they cannot be reached or read."""
        if self.name is None:
            raise UserError("dataset=hf needs the name of a data set: give dataset.name=...")
        if Path(self.name).is_file():
            raise UserError(
                f"dataset.name={self.name} is a file: give dataset.name={_kind(Path(self.name))} "
                f"'dataset.data_files={self.name}'"
            )
        if isinstance(self.data_files, str) and Path(self.data_files).is_dir():
            raise UserError(
                f"dataset.data_files={self.data_files} is a directory: give dataset.name={self.data_files} without "
                "data_files, or a glob of its files"
            )
        try:
            import datasets
        except ImportError:
            raise UserError("dataset=hf needs the `hub` extra: pip install -e '.[hub]'") from None
        try:
            for part in self.split.split("+"):
                yield from self._part(datasets, part.strip())
        except UserError:
            raise
        except Exception as error:  # whatever the network, the Hub or a file reader raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"cannot read dataset {self.name} ({reason}): check the network, or dataset.name, "
                "config_name, split and data_files"
            ) from error

    def _part(self, library: Any, split: str) -> Iterable[dict[str, Any]]:
        """The rows of one split or slice of it, such as `train`, `train[1000:2000]` or `train[:10%]`."""
        options: dict[str, Any] = {"data_files": self.data_files, "streaming": True}
        name = self.name
        files = [self.data_files] if isinstance(self.data_files, str) else self.data_files or []
        if name == "tsv" or (name == "csv" and files and all(file.endswith(".tsv") for file in files)):
            name, options["delimiter"] = "csv", "\t"
        saved = name is not None and any((Path(name) / file).is_file() for file in SAVED)
        if saved:
            stream = self._saved(library, split.partition("[")[0])
        else:
            stream = library.load_dataset(name, self.config_name, split=split.partition("[")[0], **options)
        if "[" not in split:
            return stream
        slice_ = SLICE.fullmatch(split)
        if slice_ is None:
            raise UserError(
                f"dataset.split={self.split} is not understood: give a name, or a slice such as train[1000:2000] or "
                "train[:10%]"
            )
        first, last = slice_["first"], slice_["last"]
        total = None
        if any(bound and ("%" in bound or "-" in bound) for bound in (first, last)):
            total = _num_rows(stream, local=saved or bool(files))
            if total is None:
                raise UserError(
                    f"dataset.split={self.split}: the number of rows of {self.name} is not known before all are read; "
                    "give whole numbers of rows, such as train[:10000]"
                )
        start, stop = _row(first, total, 0), _row(last, total, None)
        assert start is not None
        return stream.skip(start) if stop is None else stream.skip(start).take(max(0, stop - start))

    def _saved(self, library: Any, split: str) -> Any:
        """A split of what `save_to_disk` left."""
        found = library.load_from_disk(self.name)
        if isinstance(found, dict):
            if split not in found:
                raise UserError(
                    f"{self.name} has no split {split!r}: give dataset.split= one of {', '.join(found)}"
                )
            found = found[split]
        return found.to_iterable_dataset()


def _columns(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The columns of a row, and those inside of columns as `outer.inner`."""
    found = {}
    for name, value in row.items():
        found[prefix + name] = value
        if isinstance(value, dict):
            found |= _columns(value, f"{prefix}{name}.")
    return found


def _kind(file: Path) -> str:
    """The name under which `datasets` reads a kind of file."""
    suffix = file.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2].lower()
    return {"jsonl": "json", "ndjson": "json", "pq": "parquet", "txt": "text"}.get(suffix, suffix)


def _num_rows(stream: Any, local: bool) -> int | None:
    """How many rows a stream has; those of local files are counted."""
    splits = stream.info.splits or {}
    if str(stream.split) in splits and splits[str(stream.split)].num_examples:
        return int(splits[str(stream.split)].num_examples)
    return sum(1 for _ in stream) if local else None


def _row(bound: str | None, total: int | None, default: int | None) -> int | None:
    """The number of a row from one bound of a slice: rows, or per cent of all, from the end where negative."""
    if not bound:
        return default
    number = int(bound.removesuffix("%"))
    if bound.endswith("%"):
        assert total is not None
        number = round(number * total / 100)
    return max(0, number + total) if number < 0 and total is not None else number
