"""The page that every figure of a comparison is drawn on: title, facts, key and titles of warnings above the panels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from mechint.comparison.comparison import Comparison, Variant
from mechint.comparison.figures.looks import Look, variant_looks
from mechint.comparison.flags import percent_range, title_of
from mechint.reporting.report import shape_in_words
from mechint.reporting.style import INK, QUIET, new_figure, printable
from mechint.reporting.wording import plural

POINTS = 72  # per inch
MARGIN, LEADING = 10.0, 1.4  # points; line pitch over type size
TITLE, TEXT = 11.5, 8.0  # type sizes in points
WARNING, PALE, SHADE = "#7a4a00", "#e3e6ea", "#d0d5db"
WIDEST_NAME = 200.0  # points

Key = Sequence[
    tuple[Look, str, Sequence[str]]
]  # how something is drawn, its name, what is to be known about it


def new_page(
    width: float, body: float, title: str, lines: Sequence[str], key: Key, flags: Sequence[str]
) -> tuple[Figure, SubFigure]:
    """A figure `width` inches wide with its head, and the part below it, `body` inches high, for the panels."""
    inner = width * POINTS - 2 * MARGIN
    pieces: list[tuple[str, float, float, dict[str, Any]]] = []
    marks: list[tuple[Look, float]] = []
    down = 8.0

    def put(words: Sequence[str], right: float, **look: Any) -> None:
        nonlocal down
        for line in words:
            pieces.append((line, right, down, look))
            down += LEADING * look["size"]

    put([shortened(title, TITLE, inner, True)], MARGIN, size=TITLE, weight="bold", color=INK)
    for line in lines:
        put(wrapped(line, TEXT, inner), MARGIN, size=TEXT, color=QUIET)
    down += 3
    widest = max([0.0, *(min(WIDEST_NAME, width_of(name, TEXT, True)) for _, name, _ in key)])
    for look, name, about in key:
        marks.append((look, down + 0.55 * TEXT))
        first = down
        put([shortened(name, TEXT, widest, True)], MARGIN + 30, size=TEXT, weight="bold", color=look.colour)
        if about:
            down = first
            right = MARGIN + 30 + widest + 12
            put(wrapped(" · ".join(about), TEXT, inner + MARGIN - right), right, size=TEXT, color=QUIET)
    if flags:
        told = " · ".join(dict.fromkeys(map(title_of, flags)))
        put(wrapped(f"⚠ {told}: see the report", TEXT, inner), MARGIN, size=TEXT, color=WARNING)
    height = down + 6
    figure = new_figure(width, height / POINTS + body)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(h_pad=0.05, w_pad=0.05, hspace=0.03, wspace=0.02)
    head, below = parts(figure, [height / POINTS, body])
    whole = width * POINTS
    for words, right, at, style in pieces:
        head.text(right / whole, 1 - at / height, words, va="top", **style)
    for mark, at in marks:
        ends = [(MARGIN + shift) / whole for shift in (0, 11, 22)]
        drawn = Line2D(ends, [1 - at / height] * 3, color=mark.colour, linestyle=mark.dash, linewidth=1.4)
        drawn.set(marker=mark.marker, markevery=[1], markersize=5, transform=head.transSubfigure)
        head.add_artist(drawn)
    return figure, below


def parts(whole: Figure | SubFigure, heights: Sequence[float]) -> list[SubFigure]:
    """Parts of a figure below each other, with heights in these proportions."""
    made = whole.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    return [part for row in np.atleast_2d(made) for part in row]


def comparison_page(
    comparison: Comparison,
    size: tuple[float, float],
    title: str,
    lines: Sequence[str] = (),
    extra: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Figure, SubFigure]:
    """A page on variants: what all share, then a key with what tells each apart.

    size: inches of width, and of height below the head. extra: what the figure adds to a variant's line in the key.
    """
    facts = {variant.name: facts_of(variant) for variant in comparison.variants}
    rows = list(zip(*facts.values(), strict=True))
    shared = [len(set(row)) == 1 for row in rows]
    untold = ("", "basis channels")  # what goes without saying
    told = [row[0] for row, same in zip(rows[:-1], shared, strict=False) if same and row[0] not in untold]
    common = " · ".join(f"{fact} each" if fact.endswith(" runs") else fact for fact in told)
    looks, key = variant_looks(comparison), []
    for variant in comparison.variants:
        about = ["baseline"] * (variant.name == comparison.baseline)
        about += [fact for fact, same in zip(facts[variant.name], shared, strict=True) if fact and not same]
        key.append((looks[variant.name], variant.name, [*about, *filter(None, [extra.get(variant.name)])]))
    return new_page(*size, title, [*filter(None, [common]), *lines], key, comparison.flags)


def facts_of(variant: Variant) -> list[str]:
    """Sparsity, runs, shape, method, basis, data, which tokens exactly; empty where nothing is known."""
    result = variant.first
    mask, data = result.mask, result.dataset
    measured = variant.spread("loss") is not None
    on = f"measured on {data.name}" if data.name and measured else "nothing measured"
    digests = sorted({digest[:8] for digest in variant.numbers["evaluation_digest"] if digest})
    bases = ", ".join(dict.fromkeys(variant.numbers["basis"]))
    return [
        f"sparsity {percent_range(variant.sparsity())}",
        plural(len(variant.runs), "run"),
        shape_in_words(variant.runs[0].layer_masks),
        f"{mask.method}, {mask.ablation} ablation" if mask.method else "",
        f"basis {bases}",
        f"{on}, {data.evaluation_tokens:,} tokens" if measured and data.evaluation_tokens else on,
        f"data {', '.join(digests)}" if digests else "",
    ]


def several_runs(comparison: Comparison) -> bool:
    """Whether any variant has more than one run, so that there is a spread to show."""
    return any(len(variant.runs) > 1 for variant in comparison.variants)


@lru_cache(4096)
def width_of(words: str, size: float, bold: bool = False) -> float:
    """Printed width of one line, in points; letters are moved to whole dots, so a little more than their outlines."""
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return 1.08 * float(TextPath((0, 0), printable(words, 10_000), size, prop=font).get_extents().x1)


def wrapped(words: str, size: float, width: float, bold: bool = False) -> list[str]:
    """Break a text into lines that are at most `width` points wide; a single word that is too wide is cut short."""
    lines = [""]
    for word in printable(words, 10_000).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if width_of(longer, size, bold) <= width:
            lines[-1] = longer
        else:
            lines += [shortened(word, size, width, bold)]
    return [line for line in lines if line] or [""]


def shortened(words: str, size: float, width: float, bold: bool = False) -> str:
    """The text on one line of at most `width` points; a longer one loses its middle."""
    line = printable(words, 10_000)
    if width_of(line, size, bold) <= width:
        return line
    lengths = range(3, len(line))
    fitting = bisect_right(lengths, width, key=lambda length: width_of(printable(words, length), size, bold))
    return printable(words, lengths[fitting - 1]) if fitting else "…"
