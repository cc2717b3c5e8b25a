"""Where each variant differs from the baseline, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import SubFigure
from matplotlib.gridspec import SubplotSpec
from numpy.typing import NDArray

from mechint.comparison.comparison import Comparison, Difference, PlaceDelta
from mechint.comparison.figures.facts import several_runs
from mechint.comparison.figures.lettering import shortened
from mechint.comparison.figures.looks import variant_looks
from mechint.comparison.figures.sheet import POINTS, comparison_header, new_sheet
from mechint.reporting.style import ACCENT, INK, LINE, figure_style, index_ticks, save, write

WIDTH, ROW, TITLE_ROOM, FOOTER = 8.4, 0.21, 0.3, 0.95  # inches
LAYERS_WIDE, THIRDS_WIDE = 5.9, 1.6  # inches
# Purple and green are told apart by every common colour blindness and stand for nothing else here.
MORE, LESS = "#1b7a37", "#6f3390"
SPARSITY = LinearSegmentedColormap.from_list("sparsity difference", [MORE, "#f7f7f7", LESS])
NUMBERED_FROM = 21  # points; narrower cells have no room for a number
ROWS = ("K + V", "K", "V")
TOPS = (0.0, 1.0, 2.0)  # middles of the rows

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Scales:
    """Colour scales that all panels share, symmetric around 0: percentage points."""

    points: float

    @classmethod
    def of(cls, comparison: Comparison) -> Scales:
        """Wide enough for every difference; never so narrow that noise looks like a finding."""
        places = [
            place
            for difference in comparison.differences.values()
            for place in (*difference.layers, *difference.thirds)
        ]
        points = [
            100 * abs(value)
            for place in places
            for value in (place.sparsity, place.k_sparsity, place.v_sparsity)
        ]
        return cls(max([1.0, *points]))


class DeltaHeatmap:
    """delta_heatmap.png: variant - baseline in sparsity (K and V, K, V), per layer and third.

    A dot marks differences in sparsity of K and V together that exceed the spread between seeds.
    """

    filename: ClassVar[str] = "delta_heatmap.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        differences = list(comparison.differences.values())
        scales = Scales.of(comparison)
        panel = ROW * len(ROWS) + TITLE_ROOM
        with figure_style():
            title = f"What differs from {comparison.baseline}, layer by layer"
            header = comparison_header(comparison, title, WIDTH, notes(comparison))
            figure, body = new_sheet(header, panel * len(differences) + FOOTER + 0.2)
            heights = [*[panel] * len(differences), FOOTER]
            thirds = any(difference.thirds for difference in differences)
            widths = [LAYERS_WIDE, THIRDS_WIDE] if thirds else [LAYERS_WIDE + THIRDS_WIDE]
            grid = body.add_gridspec(len(heights), len(widths), height_ratios=heights, width_ratios=widths)
            for row, difference in enumerate(differences):
                last = row == len(differences) - 1
                axes = body.add_subplot(grid[row, 0])
                draw_cells(axes, difference.layers, scales, widths[0])
                label_rows(axes, comparison, difference)
                layer_axis(axes, comparison, difference, last)
                if thirds:
                    axes = body.add_subplot(grid[row, 1])
                    draw_cells(axes, difference.thirds, scales, widths[1])
                    if difference.thirds:
                        axes.set_xticks(range(3), ["early", "middle", "late"])
                    axes.tick_params(labelbottom=last)
            draw_scales(body, grid[len(differences), :], scales)
            return [save(figure, directory / self.filename, dpi)]


def notes(comparison: Comparison) -> list[str]:
    """What dots mean and how layers were matched."""
    lines = ["Green: the variant keeps more; purple: less."]
    if several_runs(comparison):
        lines[0] += " Dot: the difference in K + V is distinguished (adjusted t test; 4 seeds or more)."
    else:
        lines[0] += " One run each: no difference can be told from noise."
    if any(difference.by_depth for difference in comparison.differences.values()):
        lines.append(
            "Numbers of layers differ: a variant's side is its mean over the same stretch of relative depth."
        )
    return lines


def draw_cells(axes: Axes, places: Sequence[PlaceDelta], scales: Scales, wide: float) -> None:
    """Rows of ROWS, a column per place; numbers where cells are wide enough for them."""
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks([])
    axes.set(ylim=(len(ROWS) - 0.5, -0.5))
    if not places:
        axes.axis("off")
        return
    cell = wide * POINTS / len(places)
    for row, (values, limit, colours, form) in enumerate(table(places, scales)):
        edges = np.arange(len(places) + 1) - 0.5
        top = TOPS[row] - 0.5
        axes.pcolormesh(
            edges, [top, top + 1], values[None], cmap=colours, vmin=-limit, vmax=limit,
            edgecolors="white", linewidth=min(0.8, cell / 12),
        )  # fmt: skip
        if cell >= NUMBERED_FROM:
            write_values(axes, TOPS[row], values, limit, form)
    for column, place in enumerate(places):
        if place.verdict in ("higher", "lower"):
            shift = min(0.36, 0.5 - 3 / cell) if cell >= NUMBERED_FROM else 0
            axes.plot(
                [column + shift], [0], marker="o", markersize=min(3.2, 0.5 * cell), color=INK, linestyle=""
            )
    axes.set_xlim(-0.5, len(places) - 0.5)


def write_values(axes: Axes, row: float, values: Values, limit: float, form: str) -> None:
    """The numbers of one row, in white on dark cells."""
    for column, value in enumerate(values):
        words = form.format(round(value, int(form[4])) + 0.0).replace("-", "−")
        colour = "white" if abs(value) > 0.62 * limit else INK
        write(axes, words, (column, row), ha="center", va="center", size=6.2, color=colour)


def table(places: Sequence[PlaceDelta], scales: Scales) -> list[tuple[Values, float, Colormap, str]]:
    """Values, limit, colours and number format of each row."""
    points = [
        np.array([100 * getattr(place, name) for place in places])
        for name in ("sparsity", "k_sparsity", "v_sparsity")
    ]
    return [(values, scales.points, SPARSITY, "{:+.1f}") for values in points]


def label_rows(axes: Axes, comparison: Comparison, difference: Difference) -> None:
    """The variant's name above, and what each row shows."""
    colour = variant_looks(comparison)[difference.variant].colour
    axes.set_title(shortened(difference.variant, 8.5, 400, True), color=colour, weight="bold", size=8.5)
    axes.set_yticks(TOPS, ROWS)
    colours = (INK, ACCENT["K"], ACCENT["V"])
    for label, row_colour in zip(axes.get_yticklabels(), colours, strict=True):
        label.set_color(row_colour)


def layer_axis(axes: Axes, comparison: Comparison, difference: Difference, last: bool) -> None:
    """The baseline's layer numbers, below the last panel."""
    indices = [layer.index for layer in comparison[comparison.baseline].layers]
    ticks = index_ticks(len(indices), 16)
    axes.set_xticks(list(ticks), [str(indices[position]) for position in ticks])
    axes.tick_params(labelbottom=last)
    title = f"layer of {comparison.baseline}" if difference.by_depth else "layer"
    axes.set_xlabel(shortened(title, 8, 300) if last else "")


def draw_scales(place: SubFigure, spot: SubplotSpec, scales: Scales) -> None:
    """The colour bar."""
    grid = spot.subgridspec(2, 1, height_ratios=[0.55, 0.25])
    axes = place.add_subplot(grid[1, 0])
    bar = place.figure.colorbar(
        ScalarMappable(Normalize(-scales.points, scales.points), SPARSITY), cax=axes, orientation="horizontal"
    )
    bar.outline.set_edgecolor(LINE)
    bar.outline.set_linewidth(0.4)
    axes.set_xlabel("sparsity: percentage points more (+) or less (−) removed", size=7)
