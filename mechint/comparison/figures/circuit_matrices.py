"""Overlap and transfer of circuits as matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from mechint.comparison.figures.page import shortened
from mechint.reporting.style import INK, LINE, figure_style, save, titled_figure
from mechint.reporting.wording import number
from mechint.results.between import Between

WIDTH, CELL, NAMES = 10.2, 0.62, 1.1  # inches
PALER = LinearSegmentedColormap.from_list("of one model", ["#f4f5f6", "#2d6f8e"])
NEARER = LinearSegmentedColormap.from_list("distance from the dense model", ["#2d6f8e", "#f4f5f6"])
NUMBER, SMALL = 7.5, 5.5  # type sizes in points

# What a cell shows: its value, which colours it, and a large and a small line.
Cell = tuple[float | None, str, str]


class CircuitMatrices:
    """circuits.png: what circuits share, and how faithful and how far from the dense model each is on every task."""

    filename: ClassVar[str] = "circuits.png"

    def draw(self, found: Between, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        names = list(found.runs)
        counts = ", ".join(f"{name} {one.kept:,} of {one.total:,}" for name, one in found.runs.items())
        about = [
            f"Units kept: {counts}.",
            "Rows are masks. Small numbers: left what random masks with the same counts share, else the 95 % interval "
            "over sequences. Dark is more in common, and nearer to the dense model (faithfulness 1, KL 0).",
        ]
        with figure_style():
            figure, body = titled_figure(
                "Circuits of one model", about, WIDTH, max(2.2, CELL * len(names) + NAMES)
            )
            grid = body.subgridspec(1, 3)
            panels = (
                ("Channels in common (IoU)", lambda row, column: _overlap(found, row, column), PALER, 1.0),
                (
                    "Faithfulness on the data of …",
                    lambda row, column: _faith(found, row, column),
                    NEARER,
                    1.0,
                ),
                ("KL on the data of … [nats]", lambda row, column: _kl(found, row, column), NEARER, None),
            )
            for place, (title, cell, colours, limit) in enumerate(panels):
                axes = figure.add_subplot(grid[place])
                _matrix(axes, names, cell, colours, limit, rows=place == 0)
                axes.set_title(title)
            return [save(figure, directory / self.filename, dpi)]


def _matrix(
    axes: Axes,
    names: Sequence[str],
    cell: Callable[[str, str], Cell],
    colours: LinearSegmentedColormap,
    limit: float | None,
    rows: bool,
) -> None:
    cells = [[cell(row, column) for column in names] for row in names]
    values = np.array([[np.nan if value is None else value for value, _, _ in row] for row in cells])
    most = limit or max(1e-9, float(np.nanmax(values)) if np.isfinite(values).any() else 1.0)
    axes.imshow(np.clip(values, 0, most), cmap=colours, vmin=0, vmax=most, aspect="auto")
    for y, row in enumerate(cells):
        for x, (value, large, small) in enumerate(row):
            red, green, blue, _ = colours(0.0 if value is None else float(np.clip(value / most, 0, 1)))
            dark = value is not None and 0.3 * red + 0.59 * green + 0.11 * blue < 0.6
            ink = "white" if dark else INK
            axes.annotate(
                large, (x, y), xytext=(0, 3 if small else 0), textcoords="offset points",
                ha="center", va="center", fontsize=NUMBER, color=ink,
            )  # fmt: skip
            axes.annotate(
                small, (x, y), xytext=(0, -6), textcoords="offset points",
                ha="center", va="center", fontsize=SMALL, color=ink,
            )  # fmt: skip
    told = [shortened(name, 7, 90) for name in names]
    axes.set_xticks(range(len(names)), told, rotation=30 if max(map(len, names)) > 9 else 0, ha="center")
    axes.set_yticks(range(len(names)), told if rows else [""] * len(names))
    axes.tick_params(length=0)
    axes.spines[:].set(visible=True, color=LINE)


def _overlap(found: Between, row: str, column: str) -> Cell:
    one = found.shared(row, column)
    if one is None:
        return None, "—", ""
    return one.iou, number(one.iou, 2), f"random {number(one.chance, 2)}"


def _faith(found: Between, row: str, column: str) -> Cell:
    one = found.on(row, column)
    known = one.faithfulness is not None and math.isfinite(one.faithfulness)
    distance = abs(1 - one.faithfulness) if known and one.faithfulness is not None else None
    return distance, number(one.faithfulness, 2), _ends(one.interval)


def _kl(found: Between, row: str, column: str) -> Cell:
    one = found.on(row, column)
    return one.kl, number(one.kl, 2), _ends(one.kl_interval)


def _ends(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{number(interval[0], 2)} to {number(interval[1], 2)}"
