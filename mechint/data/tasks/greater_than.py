"""Which year can come after another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from mechint.data.tasks.encoding import Lexicon, Prompt
from mechint.data.tasks.task import Side, TextTask, part_of
from mechint.data.tasks.words import EVENTS

TEMPLATES: dict[Side, tuple[str, ...]] = {
    "calibration": (
        "The {event} lasted from the year {year} to the year {century}",
        "The {event} that began in the year {year} ended in the year {century}",
        "The {event} started in the year {year} and stopped in the year {century}",
        "It was in the year {year} that the {event} began, and it was over in the year {century}",
        "People remember the {event} from the year {year} to the year {century}",
        "From the year {year} on there was the {event}, which lasted up to the year {century}",
    ),
    "evaluation": ("The {event} went on from the year {year} until the year {century}",),
    "paraphrase": ("Between {year}, when the {event} started, and the end of it in the year {century}",),
}
CENTURIES = (11, 12, 13, 14, 15, 16, 17, 18)


@dataclass(kw_only=True)
class GreaterThan(TextTask):
    """ "The war lasted from the year 1752 to the year 17" -> 53 or more and not 52 or less (Hanna et al. 2023, arXiv
    2305.00586).

    Answers are first tokens: of tokenizers that cut numbers into digits, the digits above and below the first one of
    the year's two, and the digit itself is neither. The paired prompt has the year 01, after which all are right.
    """

    name: ClassVar[str] = "greater_than"
    drawn_together: ClassVar[int] = 1

    def draw(self, words: Lexicon, side: Side, generator: random.Random) -> Iterator[Prompt]:
        """An event, a century and a year at random."""
        events = part_of(words.alike(EVENTS), side)
        centuries = part_of(CENTURIES, side)
        years = [f"{year:02d}" for year in range(100)]
        while True:
            template, event = generator.choice(TEMPLATES[side]), generator.choice(events)
            century, year = generator.choice(centuries), generator.randrange(2, 98)
            clean, corrupted = (
                template.format(event=event, year=f"{century}{end}", century=century)
                for end in (years[year], "01")
            )
            yield Prompt(clean, corrupted, tuple(years[year + 1 :]), tuple(years[: year + 1]))
