"""The key findings as a card of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from mechint.comparison.comparison import Comparison
from mechint.comparison.figures.lettering import shortened, wrapped
from mechint.comparison.figures.looks import variant_looks
from mechint.comparison.figures.sheet import LEADING, MARGIN, POINTS, comparison_header, new_sheet
from mechint.comparison.findings import Section, key_findings
from mechint.errors import one_line
from mechint.reporting.style import INK, QUIET, figure_style, save
from mechint.reporting.wording import plural

NARROW, WIDE = 7.2, 11.6  # inches, for one column and for two
SIZE, HEADING, GAP = 7.8, 9.5, 24.0  # points; GAP lies between columns
INDENT, TOP = 10.0, 8.0
# Sentences per heading, by the number of variants: more than that nobody reads from a picture.
MOST = {1: 99, 2: 6, 3: 4}
FEWEST = 3

Piece = tuple[str, float, float, dict[str, Any]]  # words, right, down, look


class KeyFindings:
    """key_findings.png: what key_findings.txt says, a block per variant; with many variants shortened."""

    filename: ClassVar[str] = "key_findings.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        sections = key_findings(comparison)
        count = len(comparison.differences)
        columns, width = (1, NARROW) if count == 1 else (2, WIDE)
        room = (width * POINTS - 2 * MARGIN - GAP * (columns - 1)) / columns
        looks = variant_looks(comparison)
        cards = [
            Card.of(
                name,
                looks[name].colour,
                belonging(sections, name, comparison.baseline),
                room,
                MOST.get(count, FEWEST),
            )
            for name in comparison.differences
        ]
        with figure_style():
            who = next(iter(comparison.differences)) if count == 1 else f"{count} variants"
            title = f"Key findings: {who} against {comparison.baseline}"
            header = comparison_header(comparison, title, width, flag_lines=5)
            places, height = arranged(cards, columns)
            figure, body = new_sheet(header, (height + TOP) / POINTS)
            for card, (column, down) in zip(cards, places, strict=True):
                card.draw(body, MARGIN + column * (room + GAP), TOP + down, width * POINTS, height + TOP)
            return [save(figure, directory / self.filename, dpi)]


@dataclass(frozen=True)
class Card:
    """The findings on one variant, laid out in a column. rule: a line below the heading, in the variant's colour."""

    pieces: tuple[Piece, ...]
    colour: str
    width: float
    height: float

    @classmethod
    def of(cls, name: str, colour: str, sections: Sequence[Section], width: float, most: int) -> Card:
        """Set the sections below each other in lines of at most `width` points; at most `most` sentences each."""
        pieces: list[Piece] = [
            (
                shortened(name, HEADING, width, True),
                0,
                0,
                {"size": HEADING, "weight": "bold", "color": colour},
            )
        ]
        down = HEADING * LEADING + 6
        for section in sections:
            title = section.title[:1].upper() + section.title[1:]
            pieces.append(
                (shortened(title, SIZE, width, True), 0, down, {"size": SIZE, "weight": "bold", "color": INK})
            )
            down += SIZE * LEADING + 1
            for sentence in section.lines[:most]:
                pieces.append(("•", 0, down, {"size": SIZE, "color": colour}))
                for line in wrapped(sentence, SIZE, width - INDENT):
                    pieces.append((line, INDENT, down, {"size": SIZE, "color": INK}))
                    down += SIZE * LEADING
                down += 1.5
            if len(section.lines) > most:
                more = f"{plural(len(section.lines) - most, 'more sentence')} in key_findings.txt"
                pieces.append((more, INDENT, down, {"size": SIZE - 1, "color": QUIET}))
                down += SIZE * LEADING
            down += 5
        return cls(tuple(pieces), colour, width, down)

    def draw(self, place: SubFigure, right: float, down: float, width: float, height: float) -> None:
        """Write it with its top left corner `right` and `down` points into a place of width x height points."""
        for words, x, y, look in self.pieces:
            place.text((right + x) / width, 1 - (down + y) / height, words, va="top", **look)
        rule = 1 - (down + HEADING * LEADING + 1) / height
        ends = [right / width, (right + self.width) / width]
        place.add_artist(
            Line2D(ends, [rule, rule], color=self.colour, linewidth=0.8, transform=place.transSubfigure)
        )


def belonging(sections: Sequence[Section], name: str, baseline: str) -> list[Section]:
    """The sections on one variant, without its name in their titles."""
    start = one_line(f"{name} against {baseline}:")
    return [
        Section(section.title.removeprefix(start).strip(), section.lines)
        for section in sections
        if section.title.startswith(start)
    ]


def arranged(cards: Sequence[Card], columns: int) -> tuple[list[tuple[int, float]], float]:
    """Column and vertical place of each card, each put into the shorter column; and the height of all."""
    ends = [0.0] * columns
    places = []
    for card in cards:
        column = ends.index(min(ends))
        places.append((column, ends[column]))
        ends[column] += card.height + 10
    return places, max(ends)
