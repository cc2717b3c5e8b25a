"""What all tasks have in common."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from mechint.data.batch import Batch
from mechint.data.bos import find_beginning
from mechint.data.dataset import Dataset
from mechint.data.tasks.encoding import Encoded, Lexicon, Prompt, PromptError, encode, make_batch
from mechint.data.token_data import Task, TokenData, digest_of_prompts
from mechint.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Side = Literal["calibration", "evaluation", "paraphrase"]
SIDES: tuple[Side, ...] = ("calibration", "evaluation", "paraphrase")

# Of what is drawn for a prompt, so many times the prompts wanted at most.
ATTEMPTS = 30

# Fewer prompts on a side tell nothing.
FEWEST = 8

Item = TypeVar("Item")


@dataclass(frozen=True)
class Wanted:
    """What a task is asked for: `count` prompts of one side for a checkpoint.

    tokenizer, vocab_size: the checkpoint's. beginning: tokens put before every prompt. generator: draws the prompts.
    """

    tokenizer: PreTrainedTokenizerBase | None
    vocab_size: int
    beginning: Sequence[int]
    side: Side
    count: int
    generator: random.Random


@dataclass(kw_only=True)
class TaskDataset(Dataset):
    """Prompts with right and wrong answers, and a corrupted prompt beside each.

    calibration_prompts, evaluation_prompts, paraphrase_prompts: how many on each side, before those are left out that
    the dense model gets wrong. needed_accuracy: of the dense model on evaluation prompts; with less there is no
    behaviour to find a circuit of. bos: as for text.

    Words and templates of the calibration side occur on no other side. The seed draws calibration prompts alone;
    evaluation prompts are always the same.
    """

    name: ClassVar[str]

    calibration_prompts: int = 192
    evaluation_prompts: int = 96
    paraphrase_prompts: int = 48
    needed_accuracy: float = 0.7
    bos: bool | str = "auto"

    def __post_init__(self) -> None:
        for side, least in zip(SIDES, (FEWEST, FEWEST, 0), strict=True):
            count = getattr(self, f"{side}_prompts")
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise UserError(f"dataset.{side}_prompts={count} must be a whole number of at least {least}")
        if not 0 <= self.needed_accuracy <= 1:
            raise UserError(f"dataset.needed_accuracy={self.needed_accuracy} must lie in [0, 1], e.g. 0.7")

    @property
    def title(self) -> str:
        """The task's name."""
        return self.name

    @abstractmethod
    def encoded(self, wanted: Wanted) -> list[Encoded]:
        """As many of the prompts wanted as there can be. Raises UserError."""

    def require_tokenizer(self, wanted: Wanted) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer. Raises UserError where it has none."""
        if wanted.tokenizer is None:
            raise UserError(
                f"dataset {self.title} is text, and the checkpoint has no tokenizer: give model.tokenizer=DIRECTORY or "
                "hub id, or use dataset=induction"
            )
        return wanted.tokenizer

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        tokenizer_name: str,
        vocab_size: int,
        max_positions: int | None,
        seed: int,
    ) -> TokenData:
        """The prompts for one checkpoint, whether or not it gets them right."""
        begin = find_beginning(tokenizer, self.bos)
        found: dict[Side, list[Encoded]] = {}
        for side in SIDES:
            count = getattr(self, f"{side}_prompts")
            found[side] = self._drawn(
                tokenizer, vocab_size, side, count, seed if side == "calibration" else 0
            )
        everything = [prompt for side in SIDES for prompt in found[side]]
        self._check(found, everything, tokenizer_name, vocab_size, max_positions)
        evaluation = make_batch(found["evaluation"])
        return TokenData(
            name=self.title,
            tokenizer=tokenizer_name,
            calibration=make_batch(found["calibration"]),
            evaluation=evaluation,
            evaluation_bytes=None,
            evaluation_digest=digest_of_prompts(evaluation),
            evaluation_documents=evaluation.families,
            bos=begin.tokens,
            notes=begin.notes(tokenizer),
            task=Task(
                name=self.name,
                paraphrases=make_batch(found["paraphrase"]) if found["paraphrase"] else None,
                needed_accuracy=self.needed_accuracy,
                example=_as_text(found["evaluation"][0], tokenizer),
                shared_prompts=_shared(found["calibration"], found["evaluation"]),
            ),
        )

    def paraphrases(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        vocab_size: int,
        max_positions: int | None,
        count: int,
    ) -> Batch | None:
        """The first `count` paraphrases, of which `load` gives the first few, or as many as there are; None: there are
        none. Those that are too long for the checkpoint are left out.
        """
        found = [
            prompt
            for prompt in self._drawn(tokenizer, vocab_size, "paraphrase", count, 0)
            if max_positions is None or len(prompt.clean) <= max_positions
        ]
        return make_batch(found) if found else None

    def _drawn(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        vocab_size: int,
        side: Side,
        count: int,
        seed: int,
    ) -> list[Encoded]:
        beginning = find_beginning(tokenizer, self.bos).tokens
        drawn = random.Random(f"{side} {seed}")
        return self.encoded(Wanted(tokenizer, vocab_size, beginning, side, count, drawn))

    def _check(
        self,
        found: dict[Side, list[Encoded]],
        everything: Sequence[Encoded],
        tokenizer_name: str,
        vocab_size: int,
        max_positions: int | None,
    ) -> None:
        for side in ("calibration", "evaluation"):
            if len(found[side]) < FEWEST:
                raise UserError(
                    f"dataset {self.title} has {len(found[side])} usable {side} prompts "
                    f"with tokenizer {tokenizer_name}, and it takes {FEWEST}; use another task for this model"
                )
        highest = max(max(*p.clean, *p.corrupted, *p.right, *p.wrong) for p in everything)
        if highest >= vocab_size:
            raise UserError(
                f"tokenizer {tokenizer_name} gives token id {highest}, but the checkpoint's vocabulary has only "
                f"{vocab_size} entries: give the checkpoint's own tokenizer with model.tokenizer=DIRECTORY"
            )
        longest = max(len(prompt.clean) for prompt in everything)
        if max_positions is not None and longest > max_positions:
            raise UserError(
                f"prompts of dataset {self.title} have up to {longest} tokens, more than the {max_positions} positions "
                "of the checkpoint; use another task for this model"
            )


@dataclass(kw_only=True)
class TextTask(TaskDataset):
    """A task whose prompts are drawn as text, of words that the model's tokenizer cuts into equally many tokens.

    drawn_together: so many prompts in turn are versions of one, such as both orders of two names.
    """

    drawn_together: ClassVar[int] = 2

    @abstractmethod
    def draw(self, words: Lexicon, side: Side, generator: random.Random) -> Iterator[Prompt]:
        """An endless stream of prompts of one side, `drawn_together` of each."""

    def encoded(self, wanted: Wanted) -> list[Encoded]:
        """As many different prompts as are wanted, or as can be drawn; unusable ones are drawn again."""
        tokenizer = self.require_tokenizer(wanted)
        found: dict[tuple[int, ...], Encoded] = {}
        stream = self.draw(Lexicon(tokenizer), wanted.side, wanted.generator)
        for number in range(ATTEMPTS * wanted.count):
            if len(found) == wanted.count:
                break
            try:
                prompt = encode(next(stream), tokenizer, wanted.beginning)
            except PromptError:
                continue
            found[prompt.clean] = replace(prompt, family=number // self.drawn_together)
        return list(found.values())


def part_of(items: Sequence[Item], side: Side) -> list[Item]:
    """The items of one side: every other one is the calibration side's, and the rest the other sides'."""
    return list(items[0::2] if side == "calibration" else items[1::2])


def require_words(found: Sequence[object], needed: int, what: str, title: str) -> None:
    """Raise UserError where a tokenizer cuts too few of a task's words alike."""
    if len(found) < needed:
        raise UserError(
            f"dataset {title} needs {needed} {what} of one token length on each side, and this tokenizer has "
            f"{len(found)}; use another task for this model"
        )


def _shared(calibration: Sequence[Encoded], evaluation: Sequence[Encoded]) -> float:
    """The share of evaluation prompts that, clean or corrupted, are also a clean or corrupted calibration prompt."""
    known = {tokens for prompt in calibration for tokens in (prompt.clean, prompt.corrupted)}
    shared = [prompt.clean in known or prompt.corrupted in known for prompt in evaluation]
    return sum(shared) / len(shared)


def _as_text(prompt: Encoded, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str]:
    """A prompt for a reader; token ids where there is no tokenizer."""

    def text(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids)) if tokenizer is None else str(tokenizer.decode(list(ids)))

    return {
        "clean": text(prompt.clean),
        "corrupted": text(prompt.corrupted),
        "right": " | ".join(text([token]) for token in prompt.right),
        "wrong": " | ".join(text([token]) for token in prompt.wrong),
    }
