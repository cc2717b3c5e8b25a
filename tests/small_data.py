"""Small texts whose tokens can be told apart, for the tests of mechint.data."""

from pathlib import Path
from typing import Any

from mechint.data import Batch, TextDataset, TokenData
from mechint.data.byte_tokenizer import byte_tokenizer
from mechint.data.dataset import Dataset
from mechint.data.splits import Document, DocumentSplit, split_documents
from mechint.data.tokenise import DocumentEncoder

BYTES = byte_tokenizer()


class Documents(TextDataset):
    """Documents given in a test."""

    texts: list[str]

    @property
    def title(self) -> str:
        return "documents"

    def document_split(self, encoder: DocumentEncoder) -> DocumentSplit:
        return split_documents(map(Document.of, self.texts), self.evaluation_fraction)


def documents(texts: list[str], **settings: Any) -> Documents:
    """A dataset of these texts."""
    dataset = Documents(**settings)
    dataset.texts = texts
    return dataset


def load(
    dataset: Dataset,
    tokenizer: Any = BYTES,
    *,
    vocab_size: int = 256,
    positions: int | None = 64,
    seed: int = 0,
) -> TokenData:
    """The rows of a dataset, by default in bytes and with at most 64 inputs."""
    return dataset.load(tokenizer, "the tokenizer", vocab_size, positions, seed)


def text_of(batch: Batch) -> str:
    """What can be read in rows of bytes, row by row, as neighbours may come from anywhere."""
    return "".join(bytes(row).decode(errors="ignore") for row in batch.rows().tolist())


def story(number: int, length: int = 40) -> str:
    """A document of characters (3 bytes each) that no other document has, none of them twice."""
    return "".join(chr(0x4E00 + 64 * number + place) for place in range(length))


def write_stories(directory: Path) -> Path:
    """A file of 60 stories."""
    file = directory / "stories.txt"
    file.write_text("<|endoftext|>".join(f"\n{story(number)}\n" for number in range(60)), encoding="utf-8")
    return file
