"""A panel that says how far masks keep the same channels as the baseline's."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from mechint.comparison.comparison import Comparison
from mechint.comparison.figures.lettering import shortened, stacked
from mechint.comparison.figures.looks import Look, variant_looks
from mechint.metrics.overlap import Overlap
from mechint.metrics.spread import Spread
from mechint.reporting.style import ACCENT, INK, QUIET, Kind, write

ROW, EXTRA = 0.36, 1.05  # inches
SIZE = 7.0
SEEDS = "#c3c8ce"


def overlap_height(comparison: Comparison) -> float:
    """Inches that the panel takes."""
    return ROW * len(comparison.differences) + EXTRA


def draw_overlaps(place: SubFigure, comparison: Comparison) -> None:
    """One row per variant: intersection over union with the baseline, chance, and seeds among themselves."""
    looks, differences = variant_looks(comparison), list(comparison.differences.values())
    axes = place.add_subplot()
    names = []
    for row, difference in enumerate(differences):
        axes.axhline(row, color="#eef0f2", linewidth=0.8, zorder=0)
        names.append("\n".join(stacked(difference.variant, SIZE, 130, 2)))
        if difference.overlap is None or difference.overlap.iou is None:
            reason = difference.no_overlap or "neither mask keeps any channel"
            words = shortened(f"none: {reason}", SIZE, 400)
            write(axes, words, (0, row), (4, 0), va="center", size=SIZE, color=QUIET)
        else:
            draw_overlap(axes, row, difference.overlap, difference.overlap.iou, looks[difference.variant])
    axes.set(xlim=(0, reach(comparison)), ylim=(len(differences) - 0.5, -0.5))
    axes.set_yticks(range(len(differences)), names)
    for tick, difference in zip(axes.get_yticklabels(), differences, strict=True):
        tick.set(color=looks[difference.variant].colour, size=SIZE)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    title = shortened(f"The same channels as {comparison.baseline}?", 8.5, 400, True)
    axes.set_title(title, weight="bold", size=8.5)
    axes.set_xlabel("intersection over union of kept channels (1: the same channels; 0: none in common)")
    if any(difference.overlap for difference in differences):
        place.legend(handles=handles(), loc="outside lower left", ncols=4, fontsize=6.5)


def reach(comparison: Comparison) -> float:
    """End of the horizontal axis: 1, or less where all values are small."""
    highest = 0.0
    for difference in comparison.differences.values():
        if difference.overlap:
            o = difference.overlap
            parts = (
                o.iou,
                o.k_iou,
                o.v_iou,
                o.chance,
                o.baseline_iou,
                o.variant_iou,
            )
            highest = max([highest, *(part.high for part in parts if part)])
    return next((end for end in (0.1, 0.25, 0.5) if highest < 0.9 * end), 1.0) if highest else 1.0


def draw_overlap(axes: Axes, row: int, overlap: Overlap, iou: Spread, look: Look) -> None:
    """One variant: K and V together as its mark, K and V alone as letters, chance as lines, seeds as bars."""
    if overlap.chance:
        axes.plot([overlap.chance.mean] * 2, [row - 0.32, row + 0.32], color=INK, linewidth=1.1)
    for spread in (overlap.baseline_iou, overlap.variant_iou):
        if spread:
            place = row + (0.27 if spread is overlap.variant_iou else -0.27)
            ends: dict[str, Any] = {"marker": "|", "markersize": 4, "markeredgewidth": 1.5}
            axes.plot([spread.low, spread.high], [place] * 2, color=SEEDS, linewidth=3, zorder=1, **ends)
    kinds: list[tuple[Kind, Spread | None]] = [("K", overlap.k_iou), ("V", overlap.v_iou)]
    for kind, spread in kinds:
        if spread:
            axes.plot([spread.mean], [row], marker=".", markersize=4, linestyle="", color=ACCENT[kind])
            shift, side = ((0, 2.5), "bottom") if kind == "K" else ((0, -3), "top")
            letter: dict[str, Any] = {
                "size": 6,
                "weight": "bold",
                "color": ACCENT[kind],
                "ha": "center",
                "va": side,
            }
            write(axes, kind, (spread.mean, row), shift, **letter)
    axes.plot([iou.low, iou.high], [row, row], color=look.colour, linewidth=1.4, alpha=0.6)
    mark: dict[str, Any] = {"marker": look.marker, "markersize": 6, "markeredgecolor": "white"}
    axes.plot([iou.mean], [row], color=look.colour, linestyle="", markeredgewidth=0.6, zorder=3, **mark)
    chance = f" (chance {overlap.chance.mean:.3f})" if overlap.chance else ""
    axes.annotate(
        f"{iou.mean:.3f}{chance}", (1, row), xytext=(3, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="center", size=6.5, annotation_clip=False,
    )  # fmt: skip


def handles() -> list[Line2D]:
    """What the marks mean."""
    mark: dict[str, Any] = {"color": QUIET, "linestyle": "", "marker": "s", "markersize": 5}
    return [
        Line2D([], [], label="K and V together; K, V: alone", **mark),
        Line2D([], [], color=INK, linewidth=1.1, label="matched random masks"),
        Line2D([], [], color=SEEDS, linewidth=3, label="between seeds: baseline above, variant below"),
    ]
