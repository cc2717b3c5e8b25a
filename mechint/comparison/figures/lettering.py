"""How wide words are when printed, so that no line runs over the edge of a figure."""

from __future__ import annotations

from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font

from mechint.reporting.style import printable


@cache
def _advance(character: str, bold: bool) -> float:
    """Width of one character at a size of one point, in points."""
    path = findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal"))
    font = get_font(path)
    font.set_size(100, 72)
    return float(font.load_char(ord(character)).linearHoriAdvance) / 65536 / 100


def width_of(words: str, size: float, bold: bool = False) -> float:
    """Printed width of one line, in points."""
    return size * sum(_advance(character, bold) for character in printable(words, 10_000))


def wrapped(words: str, size: float, width: float, bold: bool = False) -> list[str]:
    """Break a text into lines that are at most `width` points wide; at least one line.

    A single word that is too wide is broken inside.
    """
    lines = [""]
    for word in printable(words, 10_000).split(" "):
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
    line = printable(words, 10_000)
    if width_of(line, size, bold) <= width:
        return line
    for kept in range(len(line) - 1, 0, -1):
        short = f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}"
        if width_of(short, size, bold) <= width:
            return short
    return "…"


def stacked(words: str, size: float, width: float, most: int = 2, bold: bool = False) -> list[str]:
    """At most `most` lines of at most `width` points; what does not fit is left out of the middle."""
    lines = wrapped(words, size, width, bold)
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], shortened(" ".join(lines[most - 1 :]), size, width, bold)]
