"""One colour and one marker per variant or curve, the same in every figure of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mechint.comparison.comparison import Comparison

# Blue and orange stand for K and V and are not used here. The first is the baseline's.
COLOURS = ("#30363d", "#00806a", "#8a4fbf", "#c2317c", "#a67c00", "#5aa02c", "#7a4a21", "#d07aa8")
MARKERS = ("o", "s", "^", "D", "v", "p", "<", "h")

Dash = Literal["-", "--", ":"] | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """How one variant or curve is drawn. dash: matplotlib's line style."""

    colour: str
    marker: str
    dash: Dash = "-"


def variant_looks(comparison: Comparison) -> dict[str, Look]:
    """The looks of the variants by name; the baseline's is dark, the others' are colours.

    From the ninth variant on colours repeat with other markers.
    """
    others = [variant.name for variant in comparison.variants if variant.name != comparison.baseline]
    looks = {comparison.baseline: Look(COLOURS[0], MARKERS[0])}
    for number, name in enumerate(others):
        turn, place = divmod(number, len(COLOURS) - 1)
        looks[name] = Look(COLOURS[1 + place], MARKERS[(1 + place + 3 * turn) % len(MARKERS)])
    return looks
