"""Text that is on every machine: the reference documentation inside Python itself."""

import platform
from dataclasses import dataclass

from mechint.data.splits import Document, DocumentSplit, split_documents
from mechint.data.text_dataset import TextDataset
from mechint.data.tokenise import DocumentEncoder
from mechint.errors import UserError

# Shorter paragraphs (headings, single lines of code) may occur in several topics.
LONGEST_REPEATABLE = 40


@dataclass(kw_only=True)
class PythonDocs(TextDataset):
    """The topics of the running Python's `help()`; the same topics are held out on every version of it."""

    evaluation_tokens: int = 20_480
    evaluation_fraction: float = 0.12

    @property
    def title(self) -> str:
        return "python_docs"

    def document_split(self, encoder: DocumentEncoder | None = None) -> DocumentSplit:
        """Training text and held-out text, as the bundled models were trained on."""
        documents = [Document.of(text, name) for name, text in python_topics().items()]
        split = split_documents(documents, self.evaluation_fraction)
        note = f"text of the documentation in Python {platform.python_version()}; it differs between versions"
        return split._replace(notes=(*split.notes, note))


def python_topics() -> dict[str, str]:
    """Topic name -> text, with each longer paragraph only in the first topic (by name) that has it.

    Many topics repeat whole sections of others; what is held out must not have been seen in training.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "this Python lacks pydoc_data: install a complete Python, or use dataset=text"
        ) from None
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for name in sorted(topics):
        paragraphs = []
        for paragraph in topics[name].split("\n\n"):
            key = " ".join(paragraph.split())
            if len(key) > LONGEST_REPEATABLE and key in seen:
                continue
            seen.add(key)
            paragraphs.append(paragraph)
        kept[name] = "\n\n".join(paragraphs)
    return kept
