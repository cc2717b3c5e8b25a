"""Prompts from a file of the user's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mechint.data.dataset import safe_title
from mechint.data.tasks.encoding import Encoded, Prompt, PromptError, encode
from mechint.data.tasks.task import Side, TaskDataset, Wanted
from mechint.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("clean", "corrupted", "correct", "incorrect")


@dataclass(kw_only=True)
class PromptPairs(TaskDataset):
    """A CSV or JSONL file with the columns clean, corrupted, correct and incorrect.

    Several answers are a list in JSONL, and separated by `|` in CSV. path: the file. evaluation_path: another one for
    the evaluation side; None: half of the prompts of `path`, always the same ones. paraphrase_path: the same questions
    in other words; None: there are none. columns: names of the columns where they are called otherwise.

    Files of EAP-IG without answers are understood: `label` is the last two digits of a year (greater-than), and in
    prompts of two names, one of them twice, the other one is right (indirect object).
    """

    name: ClassVar[str] = "pairs"

    path: str | None = None
    evaluation_path: str | None = None
    paraphrase_path: str | None = None
    columns: dict[str, str] | None = None

    @property
    def title(self) -> str:
        """The name of the file."""
        return safe_title(self.name, Path(self.path or "").stem)

    def encoded(self, wanted: Wanted) -> list[Encoded]:
        """The prompts of one side. Raises UserError for one that cannot be used, which it shows."""
        tokenizer = self.require_tokenizer(wanted)
        if self.path is None:
            raise UserError(
                "give dataset.path=FILE, a CSV or JSONL file with the columns " + ", ".join(COLUMNS)
            )
        prompts = self._of_side(wanted.side)
        wanted.generator.shuffle(prompts)
        return [self._encoded(prompt, tokenizer, wanted.beginning) for prompt in prompts[: wanted.count]]

    def _of_side(self, side: Side) -> list[Prompt]:
        if side == "paraphrase":
            return [] if self.paraphrase_path is None else self._read(self.paraphrase_path)
        assert self.path is not None
        if self.evaluation_path is not None:
            return self._read(self.evaluation_path if side == "evaluation" else self.path)
        prompts = self._read(self.path)
        return [prompt for prompt in prompts if _held_out(prompt.clean) == (side == "evaluation")]

    def _read(self, path: str) -> list[Prompt]:
        import pandas as pd  # here: it takes a second

        try:
            if Path(path).suffix.lower() in (".jsonl", ".ndjson"):
                frame = pd.read_json(path, lines=True)
            else:
                frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        except FileNotFoundError as error:
            raise UserError(f"there is no file {path}; give dataset.path=FILE") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as CSV or JSONL ({one_line(error, 160)})") from error
        names = {column: (self.columns or {}).get(column, column) for column in COLUMNS}
        rows = frame.to_dict("records")
        if not rows:
            raise UserError(f"{path} has no prompts")
        for column in ("clean", "corrupted"):
            if names[column] not in frame.columns:
                raise UserError(
                    f"{path} has no column {names[column]!r}, but {', '.join(map(str, frame.columns))}; say which "
                    f"is which with 'dataset.columns={{{column}: NAME}}'"
                )
        return [_prompt(row, names, path) for row in rows]

    def _encoded(
        self, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, beginning: Sequence[int]
    ) -> Encoded:
        try:
            return encode(prompt, tokenizer, beginning)
        except PromptError as error:
            answers = f"{' | '.join(prompt.right)!r} against {' | '.join(prompt.wrong)!r}"
            raise UserError(
                f"a prompt of {self.title} cannot be used, {error}: clean {prompt.clean!r}, corrupted "
                f"{prompt.corrupted!r}, {answers}; make both as long for this tokenizer, or leave it out"
            ) from error


def _held_out(text: str) -> bool:
    """Whether a prompt is for evaluation, wherever it stands in its file."""
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 1


def _prompt(row: Mapping[str, object], names: Mapping[str, str], path: str) -> Prompt:
    clean, corrupted = (str(row[names[column]]) for column in ("clean", "corrupted"))
    if names["correct"] in row and names["incorrect"] in row:
        right, wrong = (_answers(row[names[column]]) for column in ("correct", "incorrect"))
    elif "label" in row and re.fullmatch(r"\d{1,2}", str(row["label"])):
        year = int(str(row["label"]))
        years = [f"{number:02d}" for number in range(100)]
        right, wrong = tuple(years[year + 1 :]), tuple(years[: year + 1])
    else:
        right, wrong = _names(clean, path)
    if not right or not wrong:
        raise UserError(f"{path}: a prompt has no right or no wrong answer: {clean!r}")
    return Prompt(clean, corrupted, right, wrong)


def _answers(value: object) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return tuple(part for part in str(value).split("|") if part)


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
