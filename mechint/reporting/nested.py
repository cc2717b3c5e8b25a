"""What a run for several target sparsities found, in one figure."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mechint.reporting.style import ACCENT, INK, LINE, QUIET, figure_style, headline, new_figure, save
from mechint.reporting.wording import number
from mechint.results.result import ModelName, NestedPoint
from mechint.results.run_files import RunFiles

MASKED, COMPLEMENT = ACCENT["K"], QUIET


class NestedFigure:
    """nested_sparsities.png: KL and faithfulness of nested masks against their sparsity. Drawn for runs of several
    target sparsities only.
    """

    filename: ClassVar[str] = "nested_sparsities.png"

    def draw(self, run: RunFiles, dpi: int) -> list[Path]:
        """Draw the figure into the run's directory and return its path."""
        points = run.result.nested
        if not points:
            return []
        with figure_style():
            figure = new_figure(7.6, 3.6)
            grid = figure.add_gridspec(2, 2, height_ratios=[0.75, 2.6])
            title = f"{run.model_name}: nested masks of {len(points)} sparsities from one run"
            lines = ["Every mask keeps a part of the one before; each is measured on evaluation data."]
            headline(figure, grid[0, :], title, lines)
            draw_kl(figure.add_subplot(grid[1, 0]), points, run.result.metrics.empty.kl)
            draw_faithfulness(figure.add_subplot(grid[1, 1]), points)
            return [save(figure, run.directory / self.filename, dpi)]


def draw_kl(axes: Axes, points: list[NestedPoint], empty: float | None) -> None:
    """KL of the kept and of the removed units alone, and the empty model's as a line, in nats on a log scale."""
    models: list[tuple[ModelName, str, str]] = [
        ("complement", "removed", COMPLEMENT),
        ("masked", "kept", MASKED),
    ]
    for name, label, colour in models:
        shown = [(point.achieved, kl) for point in points if (kl := point.metrics[name].kl)]
        if not shown:
            continue
        axes.plot(
            *zip(*shown, strict=True),
            marker="o",
            markersize=3.5,
            linewidth=1.2,
            color=colour,
            label=f"{label} units alone",
        )
    for point in points:
        kl = point.metrics.masked.kl
        if kl:
            axes.annotate(
                number(kl, 3),
                (point.achieved, kl),
                xytext=(0, -9),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
                color=INK,
            )
    if empty is not None:
        axes.axhline(empty, color=LINE, linewidth=0.8, linestyle=":", label="no units (empty)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title("KL to the dense model [nats per token]")
    axes.legend(frameon=False, fontsize=6.5, loc="best")
    axes.margins(x=0.08, y=0.18)
    sparsity_axis(axes, points)


def draw_faithfulness(axes: Axes, points: list[NestedPoint]) -> None:
    """Faithfulness of each mask, with the dense and the empty model's as lines."""
    shown = [(point.achieved, value) for point in points if (value := point.faithfulness) is not None]
    if shown:
        axes.plot(*zip(*shown, strict=True), marker="o", markersize=3.5, linewidth=1.2, color=MASKED)
    for level, name in ((1.0, "dense"), (0.0, "empty")):
        axes.axhline(level, color=LINE, linewidth=0.8, linestyle=":")
        axes.annotate(
            name,
            (0, level),
            xycoords=("axes fraction", "data"),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=6.5,
            color=QUIET,
        )
    axes.set_title("Faithfulness (1: dense, 0: empty)")
    axes.margins(x=0.08, y=0.12)
    sparsity_axis(axes, points)


def sparsity_axis(axes: Axes, points: list[NestedPoint]) -> None:
    """Ticks at the sparsities reached, as far as their labels have room."""
    reached = [point.achieved for point in points]
    room = 0.06 * max(reached[-1] - reached[0], 1e-9)
    ticks = [reached[-1]]
    for value in reversed(reached[:-1]):
        if ticks[-1] - value > room:
            ticks.append(value)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.set_xlabel("sparsity: units removed")
