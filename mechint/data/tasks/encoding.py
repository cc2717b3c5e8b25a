"""Prompts as tokens: one length for clean and corrupted, the answers' first tokens, batches with padding."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mechint.data.batch import NO_TOKEN, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """One question: a clean prompt, a corrupted one of as many tokens, and what may and may not follow the clean one.

    right, wrong: continuations, of which the first token counts.
    """

    clean: str
    corrupted: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """The same in tokens; right and wrong have none in common. family: of prompts that are versions of each other, such
    as both orders of two names; None: the prompt is one of its own.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    family: Hashable | None = None


class PromptError(ValueError):
    """A prompt that cannot be used; the text says why, without the prompt."""


def encode(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, beginning: Sequence[int] = ()) -> Encoded:
    """The tokens of a prompt. Raises PromptError where lengths differ, where both are the same, or where answers do not
    begin with new tokens.

    Answers are read together with the prompt, or alone where that would change the prompt's own tokens. Tokens that all
    of them begin with, such as a space of its own, become part of both prompts. beginning: tokens put before every
    prompt.
    """
    texts = [
        prompt.clean,
        prompt.corrupted,
        *(prompt.clean + answer for answer in (*prompt.right, *prompt.wrong)),
    ]
    clean, corrupted, *continued = (
        tuple(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids
    )
    if len(clean) != len(corrupted):
        raise PromptError(f"clean has {len(clean)} tokens and corrupted {len(corrupted)}")
    if clean == corrupted:  # as texts may be that differ in what the tokenizer does not know
        raise PromptError("clean and corrupted are the same tokens")
    answers = [ids[len(clean) :] for ids in continued]
    if any(ids[: len(clean)] != clean for ids in continued):  # as "14" and "39" where 1439 is one token
        words = [*prompt.right, *prompt.wrong]
        answers = [tuple(ids) for ids in tokenizer(words, add_special_tokens=False).input_ids]
    if not all(answers):
        raise PromptError("an answer has no tokens")
    shared = _common_beginning(answers)
    if any(len(answer) == len(shared) for answer in answers):
        raise PromptError("one answer begins with another one")
    clean, corrupted = clean + shared, corrupted + shared
    first = [answer[len(shared)] for answer in answers]
    right, wrong = set(first[: len(prompt.right)]), set(first[len(prompt.right) :])
    if not right - wrong or not wrong - right:
        raise PromptError("right and wrong answers begin with the same token")
    return Encoded(
        (*beginning, *clean),
        (*beginning, *corrupted),
        tuple(sorted(right - wrong)),
        tuple(sorted(wrong - right)),
    )


def _common_beginning(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all rows begin with."""
    shared = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    return tuple(tokens[0] for tokens in shared)


def make_batch(prompts: Sequence[Encoded], side: Literal["left", "right"] = "right") -> Batch:
    """Prompts as a batch whose last real position counts, padded on one side.

    At other positions the answer is the prompt's own next token.
    """
    longest = max(len(prompt.clean) for prompt in prompts)
    choices = max(len(prompt.right) for prompt in prompts), max(len(prompt.wrong) for prompt in prompts)
    shape = (len(prompts), longest)
    tokens, paired = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    counted, there = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    answers, foils = (torch.full((*shape, count), NO_TOKEN) for count in choices)
    answers[..., 0] = 0  # padding asks nothing, and every position needs some token
    foils[..., 0] = 0
    for row, prompt in enumerate(prompts):
        length = len(prompt.clean)
        begin = longest - length if side == "left" else 0
        here, last = slice(begin, begin + length), begin + length - 1
        tokens[row, here], paired[row, here] = torch.tensor(prompt.clean), torch.tensor(prompt.corrupted)
        there[row, here], counted[row, last] = True, True
        answers[row, begin:last, 0] = tokens[row, begin + 1 : last + 1]
        answers[row, last, : len(prompt.right)] = torch.tensor(prompt.right)
        foils[row, last, : len(prompt.wrong)] = torch.tensor(prompt.wrong)
    padded = bool((~there).any())
    numbers: dict[Hashable, int] = {}
    families = [
        numbers.setdefault(("alone", row) if prompt.family is None else prompt.family, len(numbers))
        for row, prompt in enumerate(prompts)
    ]
    return Batch(
        tokens,
        _narrow(answers),
        counted,
        there if padded else None,
        foils=_narrow(foils),
        paired=paired,
        families=torch.tensor(families),
    )


def _narrow(asked: Tensor) -> Tensor:
    """[B, T, A] as [B, T] where there is one token everywhere."""
    return asked.squeeze(-1) if asked.shape[-1] == 1 else asked


class Lexicon:
    """Words that a tokenizer treats alike."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def alike(self, words: Sequence[str], distinct: bool = False) -> list[str]:
        """The words that have one and the same number of tokens after a space: the number that most of them have.

        distinct: leave out words whose first token another one has, unless those are most of them.
        """
        lengths: dict[int, list[str]] = {}
        for word in words:
            lengths.setdefault(len(self._ids(word)), []).append(word)
        found = max(lengths.values(), key=len)
        if not distinct:
            return found
        first = [self._ids(word)[0] for word in found]
        alone = [word for word, token in zip(found, first, strict=True) if first.count(token) == 1]
        return alone if 2 * len(alone) >= len(found) else found

    def forms_alike(self, pairs: Mapping[str, str]) -> list[tuple[str, str]]:
        """Of words in two forms those whose forms have as many tokens as each other after a space."""
        return [pair for pair in pairs.items() if len(self._ids(pair[0])) == len(self._ids(pair[1]))]

    def _ids(self, word: str) -> list[int]:
        ids: list[int] = self._tokenizer(f" {word}", add_special_tokens=False).input_ids
        return ids
