"""The page that every figure of a comparison is drawn on: title, key, facts and warnings above the panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from mechint.comparison.comparison import Comparison
from mechint.comparison.figures.facts import facts_of
from mechint.comparison.figures.lettering import flowed, shortened, stacked, width_of, wrapped
from mechint.comparison.figures.looks import Look, variant_looks
from mechint.reporting.style import INK, QUIET, new_figure
from mechint.reporting.wording import plural

POINTS = 72  # per inch
MARGIN = 10.0  # points
TITLE, TEXT = 11.5, 8.0  # type sizes in points
LEADING = 1.4  # line pitch over type size
WARNING, PAPER = "#7a4a00", "#fff4d6"
MOST_FLAGS, FLAG_LINES = 6, 2
WIDEST_NAME = 235.0  # points; 40 common letters


@dataclass(frozen=True)
class KeyEntry:
    """A line of the key: how something is drawn, its name and what is to be known about it."""

    look: Look
    name: str
    about: Sequence[str]
    bold: bool = False


@dataclass
class Header:
    """Everything above the panels; `draw` needs a place that is `height` points high.

    facts: short ones, set in running lines below the title. quiet: whole lines below these. flags: warnings, shown in a
    box, each cut to `flag_lines`; the report has them in full.
    """

    title: str
    facts: Sequence[str]
    quiet: Sequence[str]
    key: Sequence[KeyEntry]
    flags: Sequence[str]
    width: float
    flag_lines: int = FLAG_LINES
    _pieces: list[tuple[str, float, float, dict[str, Any]]] = field(default_factory=list)
    _marks: list[tuple[Look, float, float]] = field(default_factory=list)
    _box: tuple[float, float] | None = None
    height: float = 0.0

    def __post_init__(self) -> None:
        down = 8.0
        inner = self.width - 2 * MARGIN
        self._put(shortened(self.title, TITLE, inner, True), MARGIN, down, size=TITLE, weight="bold")
        down += TITLE * LEADING + 2
        down = self._lines(flowed(self.facts, TEXT, inner), MARGIN, down, color=QUIET)
        for line in self.quiet:
            down = self._lines(wrapped(line, TEXT, inner), MARGIN, down, color=QUIET)
        if self.key:
            down = self._key(down + 3)
        if self.flags:
            down = self._warnings(down + 7)
        self.height = down + 6

    def _put(self, words: str, right: float, down: float, **look: Any) -> None:
        self._pieces.append((words, right, down, look))

    def _lines(self, lines: Sequence[str], right: float, down: float, **look: Any) -> float:
        for line in lines:
            self._put(line, right, down, size=TEXT, **look)
            down += TEXT * LEADING
        return down

    def _key(self, down: float) -> float:
        """Two columns: marker and name, then facts, each wrapped within its column."""
        widest = min(WIDEST_NAME, max(width_of(entry.name, TEXT, entry.bold) for entry in self.key))
        left = MARGIN + 30
        second = left + widest + 14
        for entry in self.key:
            self._marks.append((entry.look, MARGIN + 11, down + 0.55 * TEXT))
            name = wrapped(entry.name, TEXT, widest, entry.bold)
            weight = "bold" if entry.bold else "normal"
            end = self._lines(name, left, down, color=entry.look.colour, weight=weight)
            about = flowed(entry.about, TEXT, self.width - MARGIN - second)
            down = max(end, self._lines(about, second, down, color=QUIET)) + 1
        return down

    def _warnings(self, down: float) -> float:
        top, inner = down, self.width - 2 * MARGIN - 26
        down += 4
        shown = list(self.flags[:MOST_FLAGS])
        if len(self.flags) > len(shown):
            shown.append(f"{plural(len(self.flags) - len(shown), 'further warning')}: see the report.")
        for flag in shown:
            self._put("⚠", MARGIN + 6, down, size=TEXT, color=WARNING)
            down = self._lines(stacked(flag, TEXT, inner, self.flag_lines), MARGIN + 20, down, color=WARNING)
        self._box = (top, down + 4)
        return down + 4

    def draw(self, place: SubFigure) -> None:
        """Write it all; `place` must have the header's width and height."""

        def across(points: float) -> float:
            return points / self.width

        def up(points: float) -> float:
            return 1 - points / self.height

        if self._box:
            top, bottom = self._box
            place.add_artist(
                FancyBboxPatch(
                    (across(MARGIN), up(bottom)),
                    across(self.width - 2 * MARGIN),
                    up(top) - up(bottom),
                    boxstyle="square,pad=0",
                    transform=place.transSubfigure,
                    facecolor=PAPER,
                    edgecolor="#e6c46a",
                    linewidth=0.6,
                )
            )
        for look, right, down in self._marks:
            ends = [across(right - 11), across(right), across(right + 11)]
            line = Line2D(ends, [up(down)] * 3, color=look.colour, linestyle=look.dash, linewidth=1.4)
            line.set(marker=look.marker, markevery=[1], markersize=5, transform=place.transSubfigure)
            place.add_artist(line)
        for words, right, down, style in self._pieces:
            place.text(across(right), up(down), words, va="top", **{"color": INK, **style})


def new_sheet(header: Header, body: float) -> tuple[Figure, SubFigure]:
    """A figure with the header drawn, and the part below it, `body` inches high, for the panels."""
    top = header.height / POINTS
    figure = new_figure(header.width / POINTS, top + body)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(h_pad=0.05, w_pad=0.05, hspace=0.03, wspace=0.02)
    head, below = stacked_parts(figure, [top, body])
    header.draw(head)
    return figure, below


def stacked_parts(whole: Figure | SubFigure, heights: Sequence[float]) -> list[SubFigure]:
    """Parts of a figure below each other, with heights in these proportions."""
    parts = whole.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    return [part for row in np.atleast_2d(parts) for part in row]


def comparison_header(
    comparison: Comparison,
    title: str,
    width: float,
    quiet: Sequence[str] = (),
    extra: Mapping[str, str] = MappingProxyType({}),
    flag_lines: int = FLAG_LINES,
) -> Header:
    """The header of a figure of variants, `width` inches wide: what all share, then a key of the variants.

    extra: what the figure itself adds to a variant's line in the key.
    """
    facts, looks = facts_of(comparison), variant_looks(comparison)
    key = []
    for variant in comparison.variants:
        base = variant.name == comparison.baseline
        about = ["baseline"] * base + list(facts.own[variant.name])
        about += [extra[variant.name]] if variant.name in extra else []
        key.append(KeyEntry(looks[variant.name], variant.name, about, bold=base))
    return Header(title, facts.common, quiet, key, comparison.flags, width * POINTS, flag_lines)
