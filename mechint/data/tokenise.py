"""Documents -> one stream of tokens, with the checkpoint's own tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, cast

import numpy as np
import tokenizers

from mechint.data.byte_counts import ByteCounter
from mechint.data.packing import TokenStream
from mechint.data.splits import Document
from mechint.data.token_cache import cached

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# What a stored stream holds: 2 with the starts of documents.
STORED = 2


class DocumentEncoder:
    """Tokenises each document once, with the special tokens that the tokenizer adds by default.

    A tokenizer that marks neither the beginning nor the end of a text, but has an end-of-text token, gets
    that token between documents; one that has none (bytes) gets documents one after the other.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._counter = ByteCounter(cast("PreTrainedTokenizerFast", tokenizer)) if tokenizer.is_fast else None
        marks_documents = tokenizer.num_special_tokens_to_add() > 0
        self._separator = None if marks_documents else cast("int | None", tokenizer.eos_token_id)
        self._encoded: dict[str, TokenStream] = {}

    def encode(self, document: Document) -> TokenStream:
        """The tokens of one document (remembered, as streamed documents are asked for twice)."""
        if document.text not in self._encoded:
            self._encoded[document.text] = self._encode(document.text)
        return self._encoded[document.text]

    def stream(self, documents: Sequence[Document], enough: int) -> TokenStream:
        """Documents one after the other, until all are read or the stream has enough tokens.

        Tokens of a fast tokenizer are kept on disk and not made twice (`mechint.data.token_cache`).
        """
        if self._counter is None:
            return self._stream(documents, enough)
        identity = (self._identity(), str(enough).encode())
        texts = (hashlib.sha256(document.text.encode()).digest() for document in documents)
        return cached(chain(identity, texts), lambda: self._stream(documents, enough))

    def _identity(self) -> bytes:
        """What decides the tokens of a text, besides the text."""
        backend = cast("PreTrainedTokenizerFast", self._tokenizer).backend_tokenizer.to_str()
        kind = type(self._tokenizer).__name__
        return f"{STORED} {tokenizers.__version__} {self._separator} {kind} {backend}".encode()

    def _stream(self, documents: Sequence[Document], enough: int) -> TokenStream:
        parts: list[TokenStream] = []
        starts: list[int] = []
        length = written = 0
        for document in documents:
            if parts and self._separator is not None:
                parts.append(TokenStream(np.array([self._separator]), np.array([0])))
                written += 1
            parts.append(self.encode(document))
            starts.append(written)
            written += len(parts[-1].ids)
            length += len(parts[-1].ids)
            if length >= enough:
                break
        ids = np.concatenate([part.ids for part in parts])
        if self._counter is None:
            return TokenStream(ids, None, np.array(starts))
        counts = [part.byte_counts for part in parts if part.byte_counts is not None]
        return TokenStream(ids, np.concatenate(counts), np.array(starts))

    def _encode(self, text: str) -> TokenStream:
        encoding = self._tokenizer(
            text,
            return_attention_mask=False,
            return_offsets_mapping=self._counter is not None,
            return_special_tokens_mask=True,
            verbose=False,  # a document longer than the model's positions is meant
        )
        ids = np.array(encoding["input_ids"], dtype=np.int64)
        if self._counter is None:
            return TokenStream(ids, None)
        inserted = np.array(encoding["special_tokens_mask"], dtype=bool)
        offsets = cast("list[tuple[int, int]]", encoding["offset_mapping"])
        return TokenStream(ids, self._counter.count(text, ids, offsets, inserted))
