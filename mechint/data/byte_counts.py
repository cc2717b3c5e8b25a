"""How many UTF-8 bytes of its document each token stands for: what bits per byte divide by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class ByteCounter:
    """Counts the bytes of a document token by token, so that any run of tokens can be summed exactly.

    Byte-level vocabularies spell the bytes of each token (one letter of the token a byte). Others are
    measured by the characters that a token covers, where `<0xE2>` and the like are one byte of a character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        decoder = tokenizer.backend_tokenizer.decoder
        self.byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        vocabulary = tokenizer.get_vocab()
        # own[i]: bytes that token i spells by itself, 0 where only its place in the document tells.
        self.own = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)  # [V]
        for token, token_id in vocabulary.items():
            if token_id in tokenizer.added_tokens_decoder:
                self.own[token_id] = len(token.encode()) if self.byte_level else 0
            elif self.byte_level:
                self.own[token_id] = len(token)
        if not self.byte_level:
            byte_ids = [i for token, i in vocabulary.items() if BYTE_TOKEN.fullmatch(token)]
            self.own[byte_ids] = 1

    def count(
        self, text: str, ids: np.ndarray, offsets: Sequence[tuple[int, int]], inserted: np.ndarray
    ) -> np.ndarray:
        """Bytes per token [S], from its ids [S], their (start, end) characters, and a mask [S] of the special
        tokens that are not in the text and stand for 0 bytes."""
        own = np.where(inserted, 0, self.own[ids])
        if self.byte_level and own.sum() == len(text.encode()):
            return own
        covered = covered_bytes(text, offsets)
        return covered if self.byte_level else np.where(own > 0, own, covered)


def covered_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bytes of text[end of the token before : own end] for each token, [S].

    Text between two tokens counts with the second; a character cut into several tokens with the first.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    before = np.concatenate([[0], np.cumsum(widths)])  # bytes before character i, [len(text) + 1]
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    return np.diff(before[ends], prepend=0)
