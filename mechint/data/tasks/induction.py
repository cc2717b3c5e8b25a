"""Continuing what was seen before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mechint.data.tasks.encoding import Encoded
from mechint.data.tasks.task import Side, TaskDataset, Wanted, part_of
from mechint.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How many tokens a prompt shows before it repeats some of them.
PERIODS: dict[Side, tuple[int, ...]] = {
    "calibration": (10, 12, 16),
    "evaluation": (11, 14),
    "paraphrase": (20, 24),
}
# What a tokenizer writes in the place of a space.
SPACES = "\u0120\u2581 "


@dataclass(kw_only=True)
class InductionTask(TaskDataset):
    """Different tokens at random, then the same again up to some place -> the token that came next the first time.

    The tokens are letters or words, other ones on the calibration side than elsewhere; without a tokenizer, any.
    The paired prompt has the first tokens in another order, so that another one came next, which is the wrong answer.
    Paraphrases are longer. repeated: how many tokens are shown again, at least.
    """

    name: ClassVar[str] = "induction"

    repeated: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        shortest = min(min(periods) for periods in PERIODS.values())
        if not 1 <= self.repeated < shortest:
            raise UserError(f"dataset.repeated={self.repeated} must be at least 1 and below {shortest}")

    def encoded(self, wanted: Wanted) -> list[Encoded]:
        """As many prompts as are wanted."""
        tokens = part_of(usable_tokens(wanted.tokenizer, wanted.vocab_size), wanted.side)
        periods = [period for period in PERIODS[wanted.side] if period <= len(tokens)]
        if not periods:
            raise UserError(
                f"dataset {self.title} needs {2 * min(PERIODS[wanted.side])} different tokens, and this model has "
                f"{2 * len(tokens)}; use another task for it"
            )
        return [
            self._prompt(tokens, wanted.generator.choice(periods), wanted.beginning, wanted.generator)
            for _ in range(wanted.count)
        ]

    def _prompt(
        self, tokens: Sequence[int], period: int, beginning: Sequence[int], generator: random.Random
    ) -> Encoded:
        shown = generator.sample(tokens, period)
        again = generator.randrange(self.repeated, period)  # tokens that are shown a second time
        last, right = shown[again - 1], shown[again]
        while True:
            other = generator.sample(shown, period)
            place = other.index(last)
            if place + 1 < period and other[place + 1] != right:
                break
        second = shown[:again]
        return Encoded(
            (*beginning, *shown, *second), (*beginning, *other, *second), (right,), (other[place + 1],)
        )


def usable_tokens(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> list[int]:
    """Tokens of letters alone, in the order of their ids; without a tokenizer all there are."""
    if tokenizer is None:
        return list(range(vocab_size))
    special = set(tokenizer.all_special_ids)
    usable = [token for token in range(min(vocab_size, len(tokenizer))) if token not in special]
    texts = [str(text) for text in tokenizer.convert_ids_to_tokens(usable)]
    letters = [
        token
        for token, text in zip(usable, texts, strict=True)
        if (word := text.lstrip(SPACES)).isascii() and word.isalpha()
    ]
    return letters or usable
