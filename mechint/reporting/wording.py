"""How numbers and foreign text are written in reports."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from markupsafe import Markup

from mechint.errors import one_line
from mechint.metrics.statistics import digits_for

# Characters that start Markdown or HTML inside a line, and "#", "+", "-", "=" that do so at its beginning.
MARKDOWN = re.compile(r"([\\`*_\[\]|~$#]|^[-+=])")
HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
ABSENT = "—"


def text(value: object) -> Markup:
    """Foreign text on one line, with everything that Markdown or HTML would act on made harmless."""
    line = MARKDOWN.sub(r"\\\1", one_line(value))
    return Markup("".join(HTML.get(character, character) for character in line))


def code(value: object) -> Markup:
    """Foreign text as a Markdown code span; it may stand in a table, so bars are escaped.

    The fence is longer than any run of backticks inside, which is what keeps the text inside.
    """
    line = one_line(value) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Markup(f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|"))


def number(value: float | None, digits: int = 4) -> str:
    """A number with a fixed number of decimals; a dash where it is absent or not finite."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{value:,.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return ABSENT if fraction is None else f"{number(100 * fraction, digits)} %"


def interval(ends: list[float] | None, digits: int = 2) -> str:
    """' (0.81 to 0.93)', or nothing."""
    return "" if ends is None else f" ({number(ends[0], digits)} to {number(ends[1], digits)})"


def measured(value: float | None, error: float | None = None, digits: int = 3) -> str:
    """A measured number with its standard error, which decides the digits: '1.364 ± 0.031'; `digits` without one.

    Numbers without any error, such as the KL of the dense model, are exact.
    """
    if value is None or not math.isfinite(value) or error is None or not math.isfinite(error):
        return number(value, digits)
    if error < 1e-12:
        return f"{round(value, digits):g}"
    places = digits_for(error, digits + 1)
    return f"{number(value, places)} ± {number(error, places)}"


def measured_percent(fraction: float | None, error: float | None = None) -> str:
    """A measured fraction as a percentage: '38.21 ± 0.44 %'."""
    if fraction is None:
        return ABSENT
    return f"{measured(100 * fraction, None if error is None else 100 * error, 1)} %"


def counted(kept: int, total: int) -> str:
    """'51 of 1,024 (5.0 %)'."""
    return f"{kept:,} of {total:,} ({percent(kept / total if total else None)})"


def plural(count: int, noun: str) -> str:
    """'1 layer', '4 layers'."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def seconds(value: float | None) -> str:
    """A duration in the unit that fits."""
    if value is None:
        return ABSENT
    if value < 1:
        return f"{1000 * value:.0f} ms"
    minutes = round(value) // 60
    return f"{value:.1f} s" if value < 120 else f"{minutes} min {round(value) % 60} s"


def byte_size(value: float | None) -> str:
    """Bytes in powers of 1024."""
    if value is None:
        return ABSENT
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def enumeration(indices: Sequence[int]) -> str:
    """Layer indices as words, runs joined: [0, 1, 2, 5] is '0–2 and 5'."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    words = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def layers_named(indices: Sequence[int]) -> str:
    """'layer 3' or 'layers 0–2 and 5'."""
    return f"layer{'' if len(indices) == 1 else 's'} {enumeration(indices)}"
