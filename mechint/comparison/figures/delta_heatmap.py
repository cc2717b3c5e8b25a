"""Where each variant differs from the baseline, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from mechint.comparison.comparison import KINDS, Comparison, Place
from mechint.comparison.figures.looks import variant_looks
from mechint.comparison.figures.page import POINTS, comparison_page, several_runs, shortened
from mechint.reporting.style import ACCENT, INK, LINE, figure_style, index_ticks, save, write

WIDTH, ROW, TITLE_ROOM, FOOTER = 8.4, 0.21, 0.3, 0.95  # inches
LAYERS_WIDE, THIRDS_WIDE = 5.9, 1.6  # inches
# Purple and green are told apart by every common colour blindness and stand for nothing else here.
COLOURS = LinearSegmentedColormap.from_list("sparsity difference", ["#1b7a37", "#f4f4f4", "#6f3390"])
NUMBERED_FROM = 21  # points; narrower cells have no room for a number
ROWS = (("K + V", INK), ("K", ACCENT["K"]), ("V", ACCENT["V"]))


class DeltaHeatmap:
    """delta_heatmap.png: variant - baseline in sparsity (K and V, K, V), per layer and third.

    A dot marks differences in sparsity of K and V together that a test distinguishes.
    """

    filename: ClassVar[str] = "delta_heatmap.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        differences = list(comparison.differences.values())
        places = [place for d in differences for place in (*d.layers, *d.thirds)]
        # never so narrow that noise looks like a finding
        limit = max(1.0, *(100 * abs(c.difference) for p in places for c in p.sparsity.values()))
        heights = [*[ROW * len(ROWS) + TITLE_ROOM] * len(differences), FOOTER]
        title = f"What differs from {comparison.baseline}, layer by layer"
        with figure_style():
            figure, body = comparison_page(comparison, (WIDTH, sum(heights) + 0.2), title, notes(comparison))
            thirds = any(difference.thirds for difference in differences)
            widths = [LAYERS_WIDE, THIRDS_WIDE] if thirds else [LAYERS_WIDE + THIRDS_WIDE]
            grid = body.add_gridspec(len(heights), len(widths), height_ratios=heights, width_ratios=widths)
            for row, difference in enumerate(differences):
                last = row == len(differences) - 1
                axes = body.add_subplot(grid[row, 0])
                draw_cells(axes, difference.layers, limit, widths[0])
                colour = variant_looks(comparison)[difference.variant].colour
                name = shortened(difference.variant, 8.5, 400, True)
                axes.set_title(name, color=colour, weight="bold", size=8.5)
                axes.set_yticks(range(len(ROWS)), [label for label, _ in ROWS])
                for label, (_, ink) in zip(axes.get_yticklabels(), ROWS, strict=True):
                    label.set_color(ink)
                indices = comparison[comparison.baseline].indices
                ticks = index_ticks(len(indices), 20)
                axes.set_xticks(ticks, [str(indices[place]) for place in ticks])
                axes.tick_params(labelbottom=last)
                axis = f"layer of {comparison.baseline}" if difference.by_depth else "layer"
                axes.set_xlabel(shortened(axis, 8, 300) if last else "")
                if difference.thirds:
                    axes = body.add_subplot(grid[row, 1])
                    draw_cells(axes, difference.thirds, limit, widths[1])
                    axes.set_xticks(range(3), ["early", "middle", "late"])
                    axes.tick_params(labelbottom=last)
            scale = body.add_subplot(
                grid[len(differences), :].subgridspec(2, 1, height_ratios=[0.45, 0.25])[1]
            )
            colours = ScalarMappable(Normalize(-limit, limit), COLOURS)
            bar = figure.colorbar(colours, cax=scale, orientation="horizontal")
            bar.outline.set(edgecolor=LINE, linewidth=0.4)
            scale.set_xlabel("sparsity: percentage points more (+) or less (−) removed", size=7)
            return [save(figure, directory / self.filename, dpi)]


def notes(comparison: Comparison) -> list[str]:
    """What dots mean and how layers were matched."""
    words = "Green: the variant keeps more; purple: less."
    if several_runs(comparison):
        words += " Dot: the difference in K + V is distinguished (adjusted t test; 4 runs or more)."
    else:
        words += " One run each: no difference can be told from noise."
    if any(difference.by_depth for difference in comparison.differences.values()):
        words += (
            " Numbers of layers differ: a variant's side is its mean over the same stretch of relative depth."
        )
    return [words]


def draw_cells(axes: Axes, places: Sequence[Place], limit: float, wide: float) -> None:
    """A row for K + V, K and V, a column per place; numbers where cells are wide enough for them."""
    values = np.array([[100 * place.sparsity[kind].difference for place in places] for kind in KINDS])
    cell = wide * POINTS / len(places)
    look: dict[str, Any] = {"cmap": COLOURS, "vmin": -limit, "vmax": limit, "edgecolors": "white"}
    axes.pcolormesh(range(len(places)), range(len(ROWS)), values, linewidth=min(0.8, cell / 12), **look)
    if cell >= NUMBERED_FROM:
        for (row, column), value in np.ndenumerate(values):
            words = f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")
            ink = "white" if abs(value) > 0.62 * limit else INK
            write(axes, words, (column, row), ha="center", va="center", size=6.2, color=ink)
    for column, place in enumerate(places):
        if place.claim.distinguished:
            shift = min(0.36, 0.5 - 3 / cell) if cell >= NUMBERED_FROM else 0
            axes.plot([column + shift], [0], color=INK, marker="o", markersize=min(3.2, 0.5 * cell))
    axes.set(xlim=(-0.5, len(places) - 0.5), ylim=(len(ROWS) - 0.5, -0.5), yticks=[])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
