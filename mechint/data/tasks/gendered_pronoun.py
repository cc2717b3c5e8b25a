"""Which pronoun stands for a name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from mechint.data.tasks.encoding import Lexicon, Prompt
from mechint.data.tasks.task import Side, TextTask, part_of, require_words
from mechint.data.tasks.words import MEN, WOMEN

TEMPLATES: dict[Side, tuple[str, ...]] = {
    "calibration": (
        "So{name} is such a good friend, isn't",
        "So{name} is a very kind person, isn't",
        "I met{name} at the station, and then",
        "So{name} is not at home today, is",
        "Last night{name} was late, and so",
        "I called{name} in the morning, but",
        "They saw{name} in the garden, where",
        "That was{name} on the phone, and",
        "My friend{name} works there, because",
    ),
    "evaluation": ("So{name} is a really great cook, isn't", "We asked{name} about the weather, and"),
    "paraphrase": ("Everybody knows{name} very well, because", "Well,{name} can dance, can't"),
}
HE, SHE = (" he",), (" she",)


@dataclass(kw_only=True)
class GenderedPronoun(TextTask):
    """ "So Mary is such a good friend, isn't" -> " she" and not " he" (Mathwin et al. 2023).

    The paired prompt has a name of the other gender.
    """

    name: ClassVar[str] = "gendered_pronoun"

    def draw(self, words: Lexicon, side: Side, generator: random.Random) -> Iterator[Prompt]:
        """A man's and a woman's name and a template at random; each name is once the clean one."""
        names = words.alike([*MEN, *WOMEN])
        men, women = (part_of([n for n in names if n in of_kind], side) for of_kind in (MEN, WOMEN))
        require_words(min(men, women, key=len), 4, "names", self.title)
        while True:
            template, man, woman = (
                generator.choice(TEMPLATES[side]),
                generator.choice(men),
                generator.choice(women),
            )
            him, her = template.format(name=f" {man}"), template.format(name=f" {woman}")
            yield Prompt(him, her, HE, SHE)
            yield Prompt(her, him, SHE, HE)
