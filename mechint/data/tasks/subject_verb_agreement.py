"""Whether the verb is that of one or of many."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from mechint.data.tasks.encoding import Lexicon, Prompt
from mechint.data.tasks.task import Side, TextTask, part_of, require_words
from mechint.data.tasks.words import NOUNS

TEMPLATES: dict[Side, tuple[str, ...]] = {
    "calibration": (
        "The {subject} near the {other}",
        "The {subject} behind the {other}",
        "The {subject} that the {other} liked",
        "The {subject} above the {other}",
        "The {subject} with the {other}",
        "The {subject} from the {other}",
        "The {subject} which the {other} knew",
        "The {subject} close to the {other}",
    ),
    "evaluation": ("The {subject} next to the {other}", "The {subject} that the {other} saw"),
    "paraphrase": ("Yesterday we heard that the {subject} across from the {other}",),
}
ONE, MANY = (" is", " was", " has"), (" are", " were", " have")


@dataclass(kw_only=True)
class SubjectVerbAgreement(TextTask):
    """ "The keys near the lamp" -> " are", " were" or " have" and not " is", " was" or " has".

    The noun in between is one or many regardless of the subject: if it always were the other, the verb could as well
    disagree with the last noun. The paired prompt has the subject in the other number (as in Marks et al. 2024, arXiv
    2403.19647).
    """

    name: ClassVar[str] = "subject_verb_agreement"

    def draw(self, words: Lexicon, side: Side, generator: random.Random) -> Iterator[Prompt]:
        """Two nouns and a template at random, each once with one and once with many."""
        nouns = part_of(words.forms_alike(NOUNS), side)
        require_words(nouns, 2, "nouns with their plurals", self.title)
        while True:
            template = generator.choice(TEMPLATES[side])
            subject, between = generator.sample(nouns, 2)
            other = generator.choice(between)
            for number, (right, wrong) in enumerate(((ONE, MANY), (MANY, ONE))):
                clean, corrupted = (
                    template.format(subject=subject[own], other=other) for own in (number, 1 - number)
                )
                yield Prompt(clean, corrupted, right, wrong)
