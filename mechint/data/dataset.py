"""What all datasets have in common: rows of equal length, and a number of tokens for calibration and evaluation."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from mechint.data.bos import cut, find_beginning
from mechint.data.leakage import NGRAM, Leakage, measure_leakage
from mechint.data.packing import TokenStream, even_rows, num_rows, seeded_rows
from mechint.data.token_data import TokenData, digest_of_rows
from mechint.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_SEQUENCE_LENGTH = 256

# Above this fraction of shared runs of tokens the sides are not taken for different text. Unrelated texts of one kind
# share up to 2 %.
MOST_SHARED = 0.1


class Sides(NamedTuple):
    """Calibration and evaluation tokens before they are cut into rows, and what a reader must know."""

    calibration: TokenStream
    evaluation: TokenStream
    notes: tuple[str, ...] = ()


class Dataset(ABC):
    """A source of calibration and evaluation tokens."""

    @property
    @abstractmethod
    def title(self) -> str:
        """A short name for results and figures, made of letters, digits, '.', '_' and '-'."""

    @abstractmethod
    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        tokenizer_name: str,
        vocab_size: int,
        max_positions: int | None,
        seed: int,
    ) -> TokenData:
        """The tokens for one checkpoint; the seed picks and orders calibration rows and nothing else.

        Raises UserError if a setting is impossible, the source cannot be read or holds too little, or the
        tokenizer is missing or does not fit the vocabulary.
        """


@dataclass(kw_only=True)
class RunningText(Dataset):
    """Calibration and evaluation tokens cut from two streams.

    sequence_length: inputs per row; None = 256, or the model's positions where there are fewer.
    calibration_tokens, evaluation_tokens: most predicted tokens of each kind.
    bos: whether rows begin with the tokenizer's beginning-of-text token; auto: if the tokenizer adds it.
    allow_overlap: whether to continue if much of the evaluation text also occurs in the calibration text.
    """

    sequence_length: int | None = None
    calibration_tokens: int = 131_072
    evaluation_tokens: int = 65_536
    bos: bool | str = "auto"
    allow_overlap: bool = False

    @abstractmethod
    def sides(self, tokenizer: PreTrainedTokenizerBase | None, seed: int) -> Sides:
        """The tokens of both sides, in two streams that share no text."""

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        tokenizer_name: str,
        vocab_size: int,
        max_positions: int | None,
        seed: int,
    ) -> TokenData:
        """Rows cut from both streams, with a beginning of text before each where the tokenizer has one."""
        length = self._row_length(max_positions)
        begin = find_beginning(tokenizer, self.bos)
        calibration, evaluation, notes = self.sides(tokenizer, seed)
        self._check_enough(calibration, evaluation, length)
        available = num_rows(len(calibration.ids), length)
        chosen = seeded_rows(available, self.calibration_tokens // length, seed)
        learn = cut(calibration.ids, None, chosen, length, begin)
        available = num_rows(len(evaluation.ids), length)
        chosen = even_rows(available, self.evaluation_tokens // length)
        measure = cut(evaluation.ids, evaluation.byte_counts, chosen, length, begin)
        documents = evaluation.documents(chosen, length)
        highest = int(max(learn.ids.max(), measure.ids.max()))
        if highest >= vocab_size:
            raise UserError(self.vocabulary_message(highest, vocab_size, tokenizer_name))
        leakage = measure_leakage(learn.ids, measure.ids)
        notes += self._leakage_note(leakage) + begin.notes(tokenizer)
        num_bytes = measure.num_bytes()
        if num_bytes is None:
            notes += (
                "bits per byte are unknown: the number of bytes that each token stands for is not known",
            )
        notes += _shortage("calibration", len(learn.ids), self.calibration_tokens, length)
        notes += _shortage("evaluation", len(measure.ids), self.evaluation_tokens, length)
        return TokenData(
            name=self.title,
            tokenizer=tokenizer_name,
            calibration=learn.batch(),
            evaluation=measure.batch(),
            evaluation_bytes=num_bytes,
            evaluation_digest=digest_of_rows(measure.ids),
            evaluation_documents=None if documents is None else torch.from_numpy(documents),
            bos=begin.tokens,
            leakage=leakage,
            notes=notes,
        )

    def vocabulary_message(self, highest: int, vocab_size: int, tokenizer_name: str) -> str:
        """What is wrong, and what to do, when a token id is outside the checkpoint's vocabulary."""
        return (
            f"tokenizer {tokenizer_name} gives token id {highest}, but the checkpoint's vocabulary has only "
            f"{vocab_size} entries: give the tokenizer that the checkpoint was trained with, model.tokenizer=DIRECTORY"
        )

    def _leakage_note(self, leakage: Leakage) -> tuple[str, ...]:
        """What is said of shared text. Raises UserError where there is too much of it."""
        if (
            leakage.n < NGRAM or leakage.shared_ngrams <= MOST_SHARED
        ):  # shorter runs are shared by any two texts
            return ()
        found = (
            f"{leakage.shared_ngrams:.0%} of the runs of {leakage.n} tokens in the evaluation data of dataset "
            f"{self.title} also occur in the calibration data"
        )
        if self.allow_overlap:
            return (
                f"{found} (dataset.allow_overlap=true): the mask is measured on text that it was learned on",
            )
        raise UserError(
            f"{found} (more than {MOST_SHARED:.0%}), and masks must not be measured on what they are learned on: give "
            "other text, or dataset.allow_overlap=true to continue anyway"
        )

    def _row_length(self, max_positions: int | None) -> int:
        """T, the inputs per row, once all sizes are known to be possible."""
        length = self.sequence_length
        if length is None:
            length = min(DEFAULT_SEQUENCE_LENGTH, max_positions or DEFAULT_SEQUENCE_LENGTH)
        _check_whole("sequence_length", length)
        if max_positions is not None and length > max_positions:
            raise UserError(
                f"dataset.sequence_length={length} is more than the {max_positions} positions of the "
                f"checkpoint: give dataset.sequence_length={max_positions} or less"
            )
        for key in ("calibration_tokens", "evaluation_tokens"):
            tokens = getattr(self, key)
            _check_whole(key, tokens)
            if tokens < length:
                raise UserError(
                    f"dataset.{key}={tokens} is less than one sequence of {length} tokens: raise it, or "
                    f"lower dataset.sequence_length"
                )
        return length

    def _check_enough(self, calibration: TokenStream, evaluation: TokenStream, length: int) -> None:
        """Raise UserError if a side, here the shorter one, does not fill one row."""
        tokens, side = min((len(calibration.ids), "calibration"), (len(evaluation.ids), "evaluation"))
        if num_rows(tokens, length) == 0:
            shorter = f", or dataset.sequence_length={tokens - 1} or less" if tokens > 1 else ""
            raise UserError(
                f"the {side} side of dataset {self.title} has only {tokens} tokens, and one sequence with "
                f"its last target takes {length + 1}: give more text{shorter}"
            )


def safe_title(*parts: str | None) -> str:
    """The parts that are there, joined by '-', fit for a directory name."""
    return "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-") for part in parts if part)


def _check_whole(key: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"dataset.{key} must be a whole number of at least 1, not {value!r}")


def _shortage(side: str, rows: int, wanted: int, length: int) -> tuple[str, ...]:
    if rows == wanted // length:
        return ()
    return (f"only {rows * length:,} of {wanted:,} {side} tokens are available",)
