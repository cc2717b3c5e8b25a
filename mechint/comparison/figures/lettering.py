"""How wide words are when printed, so that no line runs over the edge of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

from mechint.reporting.style import printable

# Letters are moved to whole dots, which makes lines a little wider than the letters are.
HINTING = 1.08


@cache
def _font(bold: bool) -> FT2Font:
    # an object of our own: matplotlib changes the size of those that it hands out
    font = FT2Font(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")))
    font.set_size(100, 72)
    return font


@cache
def _advance(character: str, bold: bool) -> float:
    """Width of one character at a size of one point, in points."""
    return float(_font(bold).load_char(ord(character)).linearHoriAdvance) / 65536 / 100


def drawable(words: str, bold: bool = False) -> str:
    """The text on one line, with '?' for characters that the font at hand lacks."""
    line = printable(words, 10_000)
    return "".join(character if _font(bold).get_char_index(ord(character)) else "?" for character in line)


def width_of(words: str, size: float, bold: bool = False) -> float:
    """Printed width of one line, in points."""
    line = "".join(character if _font(bold).get_char_index(ord(character)) else "?" for character in words)
    return HINTING * size * sum(_advance(character, bold) for character in line)


def wrapped(words: str, size: float, width: float, bold: bool = False) -> list[str]:
    """Break a text into lines that are at most `width` points wide; at least one line.

    A single word that is too wide is broken inside.
    """
    lines = [""]
    for word in drawable(words, bold).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if width_of(longer, size, bold) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and width_of(lines[-1] + character, size, bold) > width:
                lines.append("")
            lines[-1] += character
    return lines


def shortened(words: str, size: float, width: float, bold: bool = False) -> str:
    """The text on one line of at most `width` points; a longer one loses its middle."""
    line = drawable(words, bold)
    if width_of(line, size, bold) <= width:
        return line
    for kept in range(len(line) - 1, 0, -1):
        short = f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}"
        if width_of(short, size, bold) <= width:
            return short
    return "…"


def stacked(words: str, size: float, width: float, most: int = 2, bold: bool = False) -> list[str]:
    """At most `most` lines of at most `width` points; the last one ends in an ellipsis where more would follow."""
    lines = wrapped(words, size, width, bold)
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and width_of(f"{last}…", size, bold) > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]


def flowed(parts: Sequence[str], size: float, width: float) -> list[str]:
    """Facts with dots between them, in lines of at most `width` points that break between facts where possible."""
    lines: list[str] = []
    for part in map(drawable, parts):
        longer = f"{lines[-1]} · {part}" if lines else part
        if lines and width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines += wrapped(part, size, width)
    return lines
