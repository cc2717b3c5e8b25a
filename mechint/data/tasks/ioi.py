"""Indirect object identification."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from mechint.data.tasks.encoding import Lexicon, Prompt
from mechint.data.tasks.task import Side, TextTask, part_of, require_words
from mechint.data.tasks.words import MEN, PLACES, THINGS, WOMEN
from mechint.errors import UserError

Corruption = Literal["names", "subject", "flip"]

TEMPLATES: dict[Side, tuple[str, ...]] = {
    "calibration": (
        "When{A} and{B} went to the {place},{S} gave a {thing} to",
        "Then,{A} and{B} were working at the {place}.{S} decided to give a {thing} to",
        "Friends{A} and{B} found a {thing} at the {place}.{S} gave it to",
        "After{A} and{B} had a long argument at the {place},{S} handed the {thing} to",
        "The day{A} and{B} met at the {place},{S} brought a {thing} for",
        "Once{A} and{B} were done at the {place},{S} sent the {thing} to",
        "Yesterday{A} and{B} walked to the {place}, where{S} showed a {thing} to",
        "On the way to the {place}{A} and{B} stopped, and{S} lent the {thing} to",
        "Because{A} and{B} liked the {place},{S} bought a {thing} there for",
        "At the {place},{A} and{B} looked at a {thing}. In the end{S} sold it to",
        "Both{A} and{B} came to the {place}, but only{S} had a {thing} to show to",
        "Before{A} and{B} left the {place},{S} returned the {thing} to",
    ),
    "evaluation": (
        "While{A} and{B} were at the {place},{S} gave a {thing} to",
        "Then{A} and{B} had lunch near the {place}.{S} wanted to give a {thing} to",
    ),
    "paraphrase": (
        "The {place} was quiet when{A} and{B} arrived, and soon{S} offered the {thing} to",
        "One day{A} met{B} by the {place}.{S} passed the {thing} to",
    ),
}


@dataclass(kw_only=True)
class IndirectObject(TextTask):
    """ "When John and Mary went to the store, John gave a drink to" -> " Mary" and not " John".

    Either name comes first equally often. corruption: the paired prompt has three `names` of other people (Wang et al.
    2022, arXiv 2211.00593), another person as the `subject` of the second clause, or the two names exchanged there
    (`flip`), so that the wrong answer becomes right.
    """

    name: ClassVar[str] = "ioi"

    corruption: Corruption = "names"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corruption not in get_args(Corruption):
            choices = ", ".join(get_args(Corruption))
            raise UserError(f"dataset.corruption={self.corruption} is not known; use one of {choices}")

    def draw(self, words: Lexicon, side: Side, generator: random.Random) -> Iterator[Prompt]:
        """Two names and a template at random, each prompt in both orders of the names."""
        # One after the other: of men and women in turn, every other name would be a man's.
        names = part_of(words.alike([*MEN, *WOMEN], distinct=True), side)
        require_words(names, 5, "names", self.title)
        places = part_of(words.alike(PLACES), side)
        things = part_of(words.alike(THINGS), side)
        while True:
            template = generator.choice(TEMPLATES[side])
            indirect, subject, *others = generator.sample(names, 5)
            about = {"place": generator.choice(places), "thing": generator.choice(things)}
            for first, second in ((indirect, subject), (subject, indirect)):
                if self.corruption == "names":
                    other = (others[0], others[1], others[2])
                else:
                    other = (first, second, indirect if self.corruption == "flip" else others[0])
                clean, corrupted = (
                    template.format(**{k: f" {v}" for k, v in zip("ABS", three, strict=True)}, **about)
                    for three in ((first, second, subject), other)
                )
                yield Prompt(clean, corrupted, (f" {indirect}",), (f" {subject}",))
