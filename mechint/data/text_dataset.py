"""What every dataset of documents has in common: split them, tokenise each side."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mechint.data.dataset import RunningText, Sides
from mechint.data.splits import Document, DocumentSplit
from mechint.data.tokenise import DocumentEncoder
from mechint.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rows are chosen from a stream this many times longer than needed: long enough to come from all over a
# large text, short enough that tokenising takes seconds.
POOL = 4


@dataclass(kw_only=True)
class TextDataset(RunningText):
    """A dataset made of documents. evaluation_fraction: fraction of them held out for evaluation, to 1/1000."""

    evaluation_fraction: float = 0.1

    @abstractmethod
    def document_split(self, encoder: DocumentEncoder) -> DocumentSplit:
        """The documents of both sides; the encoder is for sources that are read only as far as needed."""

    def sides(self, tokenizer: PreTrainedTokenizerBase | None, seed: int) -> Sides:
        """Tokens of the documents. Raises UserError without a tokenizer."""
        if tokenizer is None:
            raise UserError(
                f"dataset {self.title} is text, and the checkpoint has no tokenizer: give "
                "model.tokenizer=DIRECTORY or hub id, or ready tokens with dataset=tokens"
            )
        encoder = DocumentEncoder(tokenizer)
        split = self.document_split(encoder)
        calibration, evaluation = _pieces(split.calibration), _pieces(split.evaluation)
        order = np.random.default_rng(seed).permutation(len(calibration))
        # In the order of their hashes, so that any beginning of the stream is a fair sample of the side.
        evaluation.sort(key=lambda piece: piece.digest)
        return Sides(
            encoder.stream([calibration[i] for i in order], POOL * self.calibration_tokens),
            encoder.stream(evaluation, POOL * self.evaluation_tokens),
            split.notes,
        )


def _pieces(documents: tuple[Document, ...]) -> list[Document]:
    return [piece for document in documents for piece in document.pieces()]
