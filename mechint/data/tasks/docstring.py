"""Which argument a docstring documents next."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from mechint.data.tasks.encoding import Lexicon, Prompt
from mechint.data.tasks.task import Side, TextTask, part_of, require_words
from mechint.data.tasks.words import IDENTIFIERS

TEMPLATES: dict[Side, tuple[str, ...]] = {
    "calibration": (
        'def f(self,{0},{1},{2}):\n    """{3}{4}\n\n    :param{0}:{5}{6}\n    :param{1}:{7}{8}\n    :param',
        'def run(self,{0},{1},{2}):\n    """{3}{4}\n\n    :param{0}:{5}\n    :param{1}:{6}\n    :param',
    ),
    "evaluation": (
        'def get(self,{0},{1},{2}):\n    """{3}{4}{5}\n\n    :param{0}:{6}\n    :param{1}:{7}{8}\n    :param',
    ),
    "paraphrase": (
        'def make({0},{1},{2}):\n    """{3}{4}\n\n    Args:\n        -{0}:{5}\n        -{1}:{6}\n        -',
    ),
}
ARGUMENTS, WORDS = 3, 9


@dataclass(kw_only=True)
class Docstring(TextTask):
    """A Python function of three arguments whose docstring has documented two -> the third and not the others.

    The paired prompt has three other arguments, in its signature and in its docstring (after Heimersheim and Janiak
    2023).
    """

    name: ClassVar[str] = "docstring"
    drawn_together: ClassVar[int] = 1

    def draw(self, words: Lexicon, side: Side, generator: random.Random) -> Iterator[Prompt]:
        """Words for arguments and text at random, none of them twice."""
        names = part_of(words.alike(IDENTIFIERS, distinct=True), side)
        require_words(names, WORDS + ARGUMENTS, "identifiers", self.title)
        while True:
            template = generator.choice(TEMPLATES[side])
            chosen = [f" {word}" for word in generator.sample(names, WORDS + ARGUMENTS)]
            own, other = chosen[:WORDS], [*chosen[WORDS:], *chosen[ARGUMENTS:WORDS]]
            wrong = tuple(own[: ARGUMENTS - 1])
            yield Prompt(template.format(*own), template.format(*other), (own[ARGUMENTS - 1],), wrong)
