"""Which documents are for learning masks and which for measuring them.

A side is decided by a hash of the document itself, so it is the same on every machine and for every seed,
and copies of one document are never on both sides.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mechint.errors import UserError

# Longer documents are tokenised piece by piece, so that a huge file costs no more than its used part.
LONGEST_PIECE = 2**20
FEW_DOCUMENTS = 10
PROBE_CHARACTERS = 200
NUM_PROBES = 32


class Document(NamedTuple):
    """A text, and the sha256 (as a number) of what identifies it: its name, else its content."""

    text: str
    digest: int

    @classmethod
    def of(cls, text: str, name: str | None = None) -> "Document":
        """A document; without a name, texts that differ only in outer white space are the same one."""
        key = text.strip() if name is None else name
        return cls(text, int(hashlib.sha256(key.encode()).hexdigest(), 16))

    def held_out(self, fraction: float) -> bool:
        """Whether it is evaluation data, where that is to be this fraction (to 1/1000) of the documents."""
        return _is_held_out(self.digest, fraction)

    def pieces(self) -> list["Document"]:
        """Itself, or its parts of at most LONGEST_PIECE characters."""
        if len(self.text) <= LONGEST_PIECE:
            return [self]
        starts = range(0, len(self.text), LONGEST_PIECE)
        return [Document.of(self.text[start : start + LONGEST_PIECE]) for start in starts]


class DocumentSplit(NamedTuple):
    """Documents of both sides in reading order, and what a reader must know about the split."""

    calibration: tuple[Document, ...]
    evaluation: tuple[Document, ...]
    notes: tuple[str, ...] = ()


def split_documents(documents: Iterable[Document], fraction: float) -> DocumentSplit:
    """Split by document, with at least one on each side; a single document is cut near its end.

    Raises UserError if there is no text, or the fraction is not between 0 and 1.
    """
    check_fraction(fraction)
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise UserError("there is no text: every document is empty, give another dataset")
    # By the remainder that decides the side: the first is nearest to being held out, the last farthest.
    digests = sorted({document.digest for document in documents}, key=lambda digest: (digest % 1000, digest))
    if len(digests) == 1:
        return _cut_document(documents[0].text, fraction)
    held_out = {digest for digest in digests if _is_held_out(digest, fraction)}
    held_out = (held_out | {digests[0]}) - {digests[-1]}
    evaluation = tuple(document for document in documents if document.digest in held_out)
    calibration = tuple(document for document in documents if document.digest not in held_out)
    notes: tuple[str, ...] = ()
    if len(digests) < FEW_DOCUMENTS:
        notes = (f"few documents: {len(calibration)} for calibration, {len(evaluation)} for evaluation",)
    return DocumentSplit(calibration, evaluation, notes)


def split_as_given(calibration: Sequence[Document], evaluation: Sequence[Document]) -> DocumentSplit:
    """Two sides chosen by the user; calibration documents that are also evaluation documents are dropped.

    Raises UserError if nothing else is left, or most of the evaluation text is inside calibration documents.
    """
    held_out = {document.digest for document in evaluation}
    kept = tuple(document for document in calibration if document.digest not in held_out)
    if not kept or _inside(evaluation, kept):
        raise UserError(
            "the text of dataset.evaluation_path is also in dataset.path, and masks must not be measured on "
            "what they are learned on: give other text, or dataset.evaluation_path=null to hold out a part"
        )
    dropped = len(calibration) - len(kept)
    notes = (f"{dropped} calibration documents left out: they are evaluation documents too",)
    return DocumentSplit(kept, tuple(evaluation), notes if dropped else ())


def check_fraction(fraction: object) -> None:
    """Raise UserError unless a fraction of the text can be held out."""
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise UserError(f"dataset.evaluation_fraction must be between 0 and 1, not {fraction!r}")


def _is_held_out(digest: int, fraction: float) -> bool:
    # Rounded because 0.07 * 1000 is a little more than 70.
    return digest % 1000 < round(fraction * 1000, 6)


def _cut_document(text: str, fraction: float) -> DocumentSplit:
    cut = len(text) - round(len(text) * fraction)
    note = f"one document: the last {100 * fraction:g} % of its text is for evaluation"
    return DocumentSplit((Document.of(text[:cut]),), (Document.of(text[cut:]),), (note,))


def _inside(evaluation: Sequence[Document], calibration: Sequence[Document]) -> bool:
    """Whether most probes, short passages from all over the evaluation text, occur in calibration text."""
    text = "\0".join(document.text for document in evaluation)
    starts = range(0, len(text), max(PROBE_CHARACTERS, -(-len(text) // NUM_PROBES)))
    probes = [text[start : start + PROBE_CHARACTERS] for start in starts]
    probes = [probe for probe in probes if len(probe) == PROBE_CHARACTERS and "\0" not in probe]
    found = sum(any(probe in document.text for document in calibration) for probe in probes)
    return 2 * found > len(probes)
