"""The look that all figures share, and how a figure becomes a file.

Figures are made with matplotlib's objects alone: no pyplot, nothing global is changed, nothing stays open.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.gridspec import SubplotSpec
from matplotlib.text import Annotation
from numpy.typing import NDArray

from mechint.reporting.context import KINDS as KINDS
from mechint.reporting.context import Cells
from mechint.reporting.context import Kind as Kind
from mechint.runtime.files import write_atomically

INK, QUIET, LINE, ALARM = "#1f2328", "#4d5359", "#7b8188", "#a3300a"
GRID, EMPTY = "#e1e4e7", "#dfe2e5"  # lines behind a curve; the part of a bar that is not filled
# Blue and vermilion stay apart for every common colour blindness. Even the palest kept channel is darker than
# the darkest removed one, so the two are told apart in a grey print as well.
ACCENT: dict[Kind, str] = {"K": "#1f6fb4", "V": "#c8500f"}
KEPT: dict[Kind, LinearSegmentedColormap] = {
    "K": LinearSegmentedColormap.from_list("kept K", ["#74a9da", "#2273b8", "#0a3470"]),
    "V": LinearSegmentedColormap.from_list("kept V", ["#ee9058", "#d0560f", "#7d2702"]),
}
REMOVED = LinearSegmentedColormap.from_list("removed", ["#f1f2f3", "#b3b7bc"])

POINTS = 72  # per inch
FORMATS = ("png", "pdf", "svg")

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # names hold dollar signs at times
    "svg.hashsalt": "mechint",  # the same picture is the same file
    "pdf.fonttype": 42,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 2.2,
}


class Caution(str):
    """A line of a heading that must not be overlooked."""


@contextmanager
def figure_style() -> Iterator[None]:
    """The project's look for the time of the block, whatever the user's own matplotlib settings are."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches on a canvas that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, dpi: int) -> Path:
    """Write the figure in the format that the path's suffix names, whole or not at all."""
    kind = path.suffix[1:]
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=kind, facecolor="white", metadata=metadata)
    return path


def write(
    axes: Axes,
    words: str,
    place: tuple[float, float],
    shift: tuple[float, float] = (0, 0),
    inside: bool = False,
    **look: Any,
) -> Annotation:
    """Put words at a place in data coordinates, or of the panel's extent with `inside`; shift in points."""
    coordinates = "axes fraction" if inside else "data"
    return axes.annotate(words, place, xytext=shift, xycoords=coordinates, textcoords="offset points", **look)


def write_lines(axes: Axes, lines: Sequence[tuple[str, dict[str, Any]]], down: float = 0) -> None:
    """Write lines below each other from the top left corner of an empty panel; `down` is in points."""
    axes.axis("off")
    for words, look in lines:
        line = write(axes, printable(words), (0, 1), (0, -down), inside=True, va="top", **look)
        line.set_in_layout(False)  # a long line must not squeeze the panels
        down += LEADING * look["size"]


TITLE_SIZE, LINE_SIZE, LEADING = 11.5, 8.5, 1.55
LONGEST = 130  # characters of a line that is not broken; a longer one loses its middle


def headline(figure: Figure, place: SubplotSpec, title: str, lines: Sequence[str]) -> None:
    """Write a bold title and quiet lines below it, at the left edge of `place`."""
    looks: list[tuple[str, dict[str, Any]]] = [(printable(title, 70), {"size": TITLE_SIZE, "weight": "bold"})]
    for line in lines:
        colour = ALARM if isinstance(line, Caution) else QUIET
        looks.append((line, {"size": LINE_SIZE, "color": colour}))
    write_lines(figure.add_subplot(place), looks, down=3)


def wrapped(lines: Sequence[str], width: float) -> list[str]:
    """Lines of a heading, broken where they would be longer than `width` inches."""
    characters = min(LONGEST, max(30, int(width * POINTS / (0.57 * LINE_SIZE))))
    joined = [type(line)(line.replace(" ± ", "\u00a0±\u00a0")) for line in lines]
    return [type(line)(part) for line in joined for part in textwrap.wrap(line, characters)]


def titled_figure(
    title: str, lines: Sequence[str], width: float, height: float
) -> tuple[Figure, SubplotSpec]:
    """A figure with a title and lines below it, which are broken where they must be, and the place for all else.

    width, height: inches of that place.
    """
    lines = wrapped(lines, width)
    header = (6 + LEADING * (TITLE_SIZE + LINE_SIZE * len(lines))) / POINTS
    figure = new_figure(width, header + height)
    grid = figure.add_gridspec(2, 1, height_ratios=[header, height])
    headline(figure, grid[0], title, lines)
    return figure, grid[1]


def cell_colours(cells: Cells, kind: Kind) -> NDArray[np.float64]:
    """RGBA [G, C, 4] of one layer: hue says kept or removed, darkness the rank of the importance."""
    return np.where(cells.kept[..., None], KEPT[kind](cells.shade), REMOVED(cells.shade))


def colour_key(bars: Axes, words: Axes, notes: Sequence[str], dotted: bool = False) -> None:
    """Draw the colour bars of kept K, kept V and removed channels, and notes on how to read them.

    `dotted` adds the dot that marks kept channels.
    """
    shades, middles = np.linspace(0, 1, 256)[None], [0.46, 1.46, 2.46]
    for middle, colours in zip(middles, [KEPT["K"], KEPT["V"], REMOVED], strict=True):
        bars.imshow(colours(shades), extent=(0, 1, middle + 0.4, middle - 0.4), aspect="auto")
    if dotted:
        dots = np.linspace(0.05, 0.95, 10)
        bars.scatter(np.tile(dots, 2), np.repeat(middles[:2], 10), s=7, color="white", linewidths=0)
    bars.set(xlim=(0, 1), ylim=(3, 0), yticks=middles, yticklabels=["kept K", "kept V", "removed"])
    bars.set_xlabel("rank of importance among the kept, and among the removed")
    bars.set_xticks([0, 1], ["lowest", "highest"])
    bars.tick_params(axis="y", length=0, labelcolor=INK)
    bars.spines[:].set_visible(False)
    write_lines(words, [(note, {"size": 8, "color": QUIET}) for note in notes], down=1)


def panel_looks(axes: Axes) -> None:
    """A panel of values along the horizontal axis: pale lines behind them, and names without ticks."""
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, labelcolor=INK)


def index_ticks(count: int, most: int) -> range:
    """At most `most` of the numbers 0 to count - 1, a power of two apart."""
    step = 1
    while -(-count // step) > most:
        step *= 2
    return range(0, count, step)


@cache
def _font_characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def printable(text: str, longest: int = LONGEST) -> str:
    """One line that the font can draw: other characters become '?', and a long text loses its middle."""
    line = " ".join(text.split())
    line = "".join(character if ord(character) in _font_characters() else "?" for character in line)
    if len(line) <= longest:
        return line
    half = (longest - 1) // 2
    return f"{line[:half]}…{line[-half:]}"
