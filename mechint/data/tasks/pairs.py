"""Prompts from a file of the user's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mechint.data.dataset import safe_title
from mechint.data.tasks.encoding import Encoded, Prompt, PromptError, encode
from mechint.data.tasks.rows import Row, Table, read_table
from mechint.data.tasks.task import FEWEST, Side, TaskDataset, Wanted
from mechint.data.token_data import TokenData
from mechint.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("clean", "corrupted", "correct", "incorrect")


@dataclass(kw_only=True)
class PromptPairs(TaskDataset):
    """A CSV or JSONL file with the columns clean, corrupted, correct and incorrect.

    Several answers are a list in JSONL, and separated by `|` in CSV. path: the file. evaluation_path: another one for
    the evaluation side; None: half of the prompts of `path`, always the same ones. paraphrase_path: the same questions
    in other words; None: there are none. columns: names of the columns where they are called otherwise. allow_overlap:
    whether to continue if prompts of another side, clean or corrupted, are calibration prompts as well.

    Values are taken as they are, spaces included. All must be text: a number in JSONL is refused, since it does not say
    whether a space stands before it. Rows that repeat another one are left out. Rows of `path` that share a prompt, as
    those of one pair in both directions, are on the same side; with allow_overlap only such pairs are kept together.

    Files of EAP-IG without answers are understood: `label` is the last two digits of a year (greater-than), and in
    prompts of two names, one of them twice, the other one is right (indirect object).
    """

    name: ClassVar[str] = "pairs"

    path: str | None = None
    evaluation_path: str | None = None
    paraphrase_path: str | None = None
    columns: dict[str, str] | None = None
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # The latest content of the files, and the notes on it; None: not read.
        self._latest: tuple[dict[Side, list[Prompt]], tuple[str, ...]] | None = None
        if not isinstance(self.columns, Mapping | None):
            raise UserError(
                f"dataset.columns={self.columns} must be names, as in 'dataset.columns={{clean: NAME}}'"
            )
        unknown = next((column for column in self.columns or {} if column not in COLUMNS), None)
        if unknown is not None:
            raise UserError(
                f"dataset.columns has {unknown!r}, which is not known; use one of {', '.join(COLUMNS)}, as in "
                "'dataset.columns={clean: NAME}'"
            )

    @property
    def title(self) -> str:
        """The name of the file."""
        return safe_title(self.name, Path(self.path or "").stem)

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        tokenizer_name: str,
        vocab_size: int,
        max_positions: int | None,
        seed: int,
    ) -> TokenData:
        """The prompts for one checkpoint, with notes on rows that were left out and on prompts that sides share."""
        self._latest = self._sides()
        data = super().load(tokenizer, tokenizer_name, vocab_size, max_positions, seed)
        return replace(data, notes=(*data.notes, *self._latest[1]))

    def encoded(self, wanted: Wanted) -> list[Encoded]:
        """The prompts of one side. Raises UserError for one that cannot be used, which it shows."""
        tokenizer = self.require_tokenizer(wanted)
        sides, _ = self._latest or self._sides()
        prompts = list(sides[wanted.side])
        wanted.generator.shuffle(prompts)
        prompts = prompts[: wanted.count]
        return [
            replace(self._encoded(prompt, tokenizer, wanted.beginning), family=family)
            for prompt, family in zip(prompts, _families(prompts), strict=True)
        ]

    def _sides(self) -> tuple[dict[Side, list[Prompt]], tuple[str, ...]]:
        """All prompts of every side, and what a reader must know of them. Raises UserError."""
        if self.path is None:
            raise UserError(
                "give dataset.path=FILE, a CSV or JSONL file with the columns " + ", ".join(COLUMNS)
            )
        files: dict[Side, str | None] = {
            "calibration": self.path,
            "evaluation": self.evaluation_path,
            "paraphrase": self.paraphrase_path,
        }
        sides: dict[Side, list[Prompt]] = {}
        notes: list[str] = []
        for side, file in files.items():
            rows = [] if file is None else self._read(file)
            sides[side] = list(dict.fromkeys(rows))
            if repeated := len(rows) - len(sides[side]):
                notes.append(f"{repeated} of {len(rows)} rows of {file} repeat another one and are left out")
        if self.evaluation_path is None:
            sides["calibration"], sides["evaluation"] = self._split(sides["calibration"])
        for side in ("evaluation", "paraphrase"):
            notes += self._overlap_note(sides["calibration"], sides[side], side)
        return sides, tuple(notes)

    def _split(self, prompts: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
        """The calibration and the evaluation side of one file, wherever a prompt stands in it."""
        pairs = ["\0".join(sorted((prompt.clean, prompt.corrupted))) for prompt in prompts]
        if self.allow_overlap:
            return _halves(prompts, pairs)
        halves = _halves(prompts, _families(prompts))
        if min(map(len, halves)) < FEWEST <= min(map(len, _halves(prompts, pairs))):
            raise UserError(
                f"rows of {self.path} share so many prompts, clean or corrupted, that they cannot be divided: without "
                f"a prompt on both sides {len(halves[0])} are left for calibration and {len(halves[1])} for "
                "evaluation; give dataset.evaluation_path=FILE, or dataset.allow_overlap=true to continue anyway"
            )
        return halves

    def _overlap_note(self, calibration: list[Prompt], others: list[Prompt], side: Side) -> tuple[str, ...]:
        """What is said of prompts on both sides. Raises UserError where that is not allowed."""
        known = {text for prompt in calibration for text in (prompt.clean, prompt.corrupted)}
        shared = [prompt for prompt in others if prompt.clean in known or prompt.corrupted in known]
        if not shared:
            return ()
        found = (
            f"{len(shared) / len(others):.2%} of the {side} prompts of dataset {self.title} "
            f"({len(shared)} of {len(others)}) are calibration prompts as well, clean or corrupted"
        )
        if self.allow_overlap:
            return (
                f"{found} (dataset.allow_overlap=true): the mask is measured on prompts that it was learned on",
            )
        raise UserError(
            f"{found}, such as {_shown(shared[0])}, and masks must not be measured on what they are learned on: give "
            "other prompts, or dataset.allow_overlap=true to continue anyway"
        )

    def _read(self, path: str) -> list[Prompt]:
        table = read_table(path)
        names = {column: (self.columns or {}).get(column, column) for column in COLUMNS}
        answers = [column for column in COLUMNS[2:] if names[column] in table.columns]
        # Of the answers both, one that is there shows that they are not to be told from the prompts.
        for column in COLUMNS if answers else {**dict.fromkeys(COLUMNS[:2]), **(self.columns or {})}:
            if table.columns.count(names[column]) != 1:
                problem = "several columns" if names[column] in table.columns else "no column"
                raise UserError(
                    f"{path} has {problem} {names[column]!r}, but {one_line(', '.join(table.columns), 160)}; say "
                    f"which is which with 'dataset.columns={{{column}: NAME}}'"
                )
        return [_prompt(row, names, table, path) for row in table.rows]

    def _encoded(
        self, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, beginning: Sequence[int]
    ) -> Encoded:
        try:
            return encode(prompt, tokenizer, beginning)
        except PromptError as error:
            raise UserError(
                f"a prompt of {self.title} cannot be used, {error}: {_shown(prompt)}; change it, so that this "
                "tokenizer makes as many tokens of both, or leave it out"
            ) from error


def _shown(prompt: Prompt) -> str:
    answers = f"{' | '.join(prompt.right)!r} against {' | '.join(prompt.wrong)!r}"
    return f"clean {prompt.clean!r}, corrupted {prompt.corrupted!r}, {answers}"


def _halves(prompts: Iterable[Prompt], names: Iterable[str]) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to learn on and those to measure on; those of one name are on the same side."""
    halves: tuple[list[Prompt], list[Prompt]] = ([], [])
    for prompt, name in zip(prompts, names, strict=True):
        halves[_held_out(name)].append(prompt)
    return halves


def _held_out(name: str) -> bool:
    """Whether prompts of this name are for evaluation, wherever they stand in their file."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def _families(prompts: Sequence[Prompt]) -> list[str]:
    """A name for each prompt, which it shares with those that have a text in common with it, or with one of these:
    the first of all their texts in the alphabet.
    """
    above: dict[str, str] = {}

    def first(text: str) -> str:
        while (higher := above.setdefault(text, text)) != text:
            above[text] = above[higher]
            text = higher
        return text

    for prompt in prompts:
        low, high = sorted((first(prompt.clean), first(prompt.corrupted)))
        above[high] = low
    return [first(prompt.clean) for prompt in prompts]


def _prompt(row: Row, names: Mapping[str, str], table: Table, path: str) -> Prompt:
    clean, corrupted = (row.text(names[column]) for column in ("clean", "corrupted"))
    if clean == corrupted:
        raise UserError(
            f"{row.where}: clean and corrupted are the same, {clean!r}; change one, or leave the row out"
        )
    if names["correct"] in table.columns:
        right, wrong = (row.texts(names[column]) for column in ("correct", "incorrect"))
    elif "label" in table.columns and re.fullmatch(r"\d{1,2}", str(row.present("label"))):
        year = int(str(row.fields["label"]))
        years = [f"{number:02d}" for number in range(100)]
        right, wrong = tuple(years[year + 1 :]), tuple(years[: year + 1])
    else:
        right, wrong = _names(clean, path)
    if not right or not wrong:
        raise UserError(f"{row.where}: a prompt has no right or no wrong answer: {clean!r}")
    prompt = Prompt(clean, corrupted, right, wrong)
    if both := [answer for answer in right if answer in wrong]:
        raise UserError(
            f"{row.where}: {both[0]!r} is both a right and a wrong answer: {_shown(prompt)}; leave it out of one of "
            "them"
        )
    return prompt


def _names(clean: str, path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The name that a prompt names once, and the one that it names twice."""
    words = re.findall(r"\b[A-Z][a-z]+\b", clean)
    twice = {word for word in words if words.count(word) == 2}
    found = re.search(r"\b([A-Z][a-z]+) and ([A-Z][a-z]+)\b", clean)
    pair = found.groups() if found else ()
    if len(twice & set(pair)) != 1:
        raise UserError(
            f"{path} has no columns of right and wrong answers, and they cannot be told from {clean!r}; add the "
            "columns correct and incorrect"
        )
    (subject,) = twice & set(pair)
    (other,) = set(pair) - {subject}
    return (f" {other}",), (f" {subject}",)
