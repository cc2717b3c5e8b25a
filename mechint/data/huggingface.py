"""Documents from any data set that the `datasets` library reads, on the Hub or local."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mechint.data.dataset import safe_title
from mechint.data.splits import Document, DocumentSplit, split_documents
from mechint.data.text_dataset import POOL, TextDataset
from mechint.data.tokenise import DocumentEncoder
from mechint.errors import UserError


@dataclass(kw_only=True)
class HuggingFaceText(TextDataset):
    """One text column of a data set: streamed, and read only until both sides are full.

    name: a Hub id; or parquet, json, csv, text for local data_files. config_name, split, data_files: as
    `datasets.load_dataset` takes them. text_column: the column that holds the documents.
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
            if self.text_column not in row:
                raise UserError(
                    f"dataset {self.name} has no column {self.text_column!r}: give dataset.text_column= one "
                    f"of {', '.join(sorted(row))}"
                )
            text = row[self.text_column]
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
        try:
            from datasets import load_dataset
        except ImportError:
            raise UserError("dataset=hf needs the `hub` extra: pip install -e '.[hub]'") from None
        try:
            yield from load_dataset(
                self.name, self.config_name, split=self.split, data_files=self.data_files, streaming=True
            )
        except Exception as error:  # whatever the network, the Hub or a file reader raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"cannot read dataset {self.name} ({reason}): check the network, or dataset.name, "
                "config_name, split and data_files"
            ) from error
