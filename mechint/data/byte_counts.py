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
    """Counts the bytes of a document token by token, so that the bytes of any run of tokens are known.

    Tokens of byte-level vocabularies spell their bytes, one letter a byte. Others are measured by the
    characters that they cover, and a token like `<0xE2>` is one byte of a character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        decoder = tokenizer.backend_tokenizer.decoder
        self._byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        vocabulary = tokenizer.get_vocab()
        # Bytes that a token spells by itself, [V]; 0 where only its place in the document tells.
        self._spelled = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
        for token, token_id in vocabulary.items():
            if not self._byte_level:
                self._spelled[token_id] = BYTE_TOKEN.fullmatch(token) is not None
            elif token_id in tokenizer.added_tokens_decoder:
                self._spelled[token_id] = len(token.encode())
            else:
                self._spelled[token_id] = len(token)

    def count(
        self, text: str, ids: np.ndarray, offsets: Sequence[tuple[int, int]], inserted: np.ndarray
    ) -> np.ndarray:
        """Bytes per token [S], from its ids [S], their (start, end) characters, and a mask [S] of the special
        tokens that are not in the text and stand for 0 bytes."""
        spelled = np.where(inserted, 0, self._spelled[ids])
        if not self._byte_level:
            return share_bytes(covered_bytes(text, offsets), spelled)
        # They differ where the tokenizer changes the text first, for example adds a space.
        return spelled if spelled.sum() == len(text.encode()) else covered_bytes(text, offsets)


def covered_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bytes of text[end of the token before : own end] for each token, [S].

    Text between two tokens counts with the second; a character cut into several tokens with the first.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    before = np.concatenate([[0], np.cumsum(widths)])  # bytes before character i, [len(text) + 1]
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    return np.diff(before[ends], prepend=0)


def share_bytes(covered: np.ndarray, spelled: np.ndarray) -> np.ndarray:
    """Give the bytes [S] that the first token of a character covers to the tokens that spell them, [S].

    The first token keeps what no other spells: nothing, if it is only a space that is not in the text.
    """
    first = covered > 0
    character = np.cumsum(first)
    left = np.bincount(character, covered - spelled, minlength=1).astype(np.int64)
    if left.min() < 0:
        return covered
    counts = spelled.copy()
    counts[first] += left[character[first]]
    return counts
