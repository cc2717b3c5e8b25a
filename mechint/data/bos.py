"""Rows that begin as the model's training text did: with the tokenizer's beginning-of-text token, if it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from mechint.data.batch import Batch
from mechint.data.packing import cut_rows
from mechint.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Beginning(NamedTuple):
    """tokens: what rows begin with, () for nothing. never_counted: token ids that are in no case predicted."""

    tokens: tuple[int, ...]
    never_counted: tuple[int, ...]

    def notes(self, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
        """What a reader must know, in words."""
        if tokenizer is None or not self.never_counted:
            return ()
        names = " ".join(str(name) for name in tokenizer.convert_ids_to_tokens(list(self.never_counted)))
        if self.tokens:
            return (f"every row begins with {names}, which is never counted as a predicted token",)
        return (
            f"rows do not begin with {names}, although the tokenizer adds it (dataset.bos=false); it is "
            "never counted as a predicted token",
        )


class Rows(NamedTuple):
    """Rows of T inputs and, shifted by one, T answers.

    ids: int64 [N, T+1]. counted: bool [N, T], the answers that count; None: all. byte_counts: int64 [N, T+1]; None
    where unknown.
    """

    ids: np.ndarray
    counted: np.ndarray | None
    byte_counts: np.ndarray | None

    def batch(self) -> Batch:
        """The rows as sequences and their answers."""
        ids = torch.from_numpy(self.ids)
        counted = None if self.counted is None else torch.from_numpy(self.counted)
        return Batch(tokens=ids[:, :-1], answers=ids[:, 1:], counted=counted)

    def num_bytes(self) -> int | None:
        """Bytes of the text of the answers that count; None where unknown."""
        if self.byte_counts is None:
            return None
        answers = self.byte_counts[:, 1:]
        return int((answers if self.counted is None else answers[self.counted]).sum())


def added_at_beginning(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that a tokenizer puts before every text by itself, as those do whose model was trained with them."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    for count in range(len(whole) - len(plain) + 1):
        if whole[count : count + len(plain)] == plain:
            return tuple(whole[:count])
    return ()


def find_beginning(tokenizer: PreTrainedTokenizerBase | None, wanted: object) -> Beginning:
    """What rows begin with, for `dataset.bos` auto (what the tokenizer adds by itself), true or false.

    Raises UserError for another setting, and for true where there is no such token.
    """
    if wanted not in ("auto", True, False):
        raise UserError(f"dataset.bos must be auto, true or false, not {wanted!r}")
    own = () if tokenizer is None else added_at_beginning(tokenizer)
    if wanted is False or (wanted == "auto" and not own):
        return Beginning((), own)
    named = None if tokenizer is None else tokenizer.bos_token_id
    if not own and not isinstance(named, int):
        lacks = (
            "there is no tokenizer" if tokenizer is None else "the tokenizer has no beginning-of-text token"
        )
        raise UserError(f"dataset.bos=true, but {lacks}: use dataset.bos=auto, or give model.tokenizer=...")
    tokens = own if own or not isinstance(named, int) else (named,)
    return Beginning(tokens, tokens)


def cut(
    ids: np.ndarray, byte_counts: np.ndarray | None, rows: np.ndarray, length: int, begin: Beginning
) -> Rows:
    """The rows [N] of a stream [S], each with a beginning before its text, and which answers count.

    Rows overlap by one token without a beginning, which is the last answer of one and the first input of the next;
    with one, by none. So every token of the stream is an answer that counts at most once.
    """
    if not begin.tokens:
        cut_ids = cut_rows(ids, rows, length)
        counts = None if byte_counts is None else cut_rows(byte_counts, rows, length)
        return Rows(cut_ids, _counted(cut_ids, begin), counts)
    text = cut_rows(ids, rows, length)  # one token more than is needed
    first = np.array(begin.tokens)
    own = (text[:, : len(first)] == first).all(
        1
    )  # its text already begins so: it keeps its last token, uncounted
    width = length + 1 - len(first)
    begun = np.where(own[:, None], text, np.concatenate([np.tile(first, (len(text), 1)), text[:, :width]], 1))
    counted = _counted(begun, begin)
    assert counted is not None
    counted[own, -1] = False
    if byte_counts is None:
        return Rows(begun, counted, None)
    counts = cut_rows(byte_counts, rows, length)
    nothing = np.zeros((len(text), len(first)), dtype=np.int64)
    counts = np.where(own[:, None], counts, np.concatenate([nothing, counts[:, :width]], 1))
    return Rows(begun, counted, counts)


def _counted(ids: np.ndarray, begin: Beginning) -> np.ndarray | None:
    if not begin.never_counted:
        return None
    return ~np.isin(ids[:, 1:], begin.never_counted)
