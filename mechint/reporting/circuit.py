"""What the report says of tasks, circuits and gates, and the curve of a circuit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from mechint.reporting.style import ACCENT, LINE, QUIET, figure_style, headline, new_figure, save
from mechint.reporting.wording import number
from mechint.results.circuit import CircuitInfo, CircuitPoint
from mechint.results.run_files import RunFiles

EXAMPLE_NAMES = {
    "clean": "Prompt",
    "corrupted": "Paired prompt",
    "right": "Right",
    "wrong": "Wrong",
}

# Beyond, faithfulness says no more than that a circuit does something else.
LOWEST, HIGHEST = -1.0, 2.0


class CircuitFigure:
    """circuit.png: faithfulness and completeness of circuits against their size, with intervals. For tasks only."""

    filename: ClassVar[str] = "circuit.png"

    def draw(self, run: RunFiles, dpi: int) -> list[Path]:
        """Draw the figure into the run's directory and return its path."""
        circuit, task = run.result.circuit, run.result.task
        if circuit is None or not circuit.curve or task is None:
            return []
        with figure_style():
            figure = new_figure(7.6, 3.7)
            grid = figure.add_gridspec(2, 2, height_ratios=[0.6, 2.8])
            title = f"{run.model_name}: circuits of {task.name} by size"
            lines = [
                f"The highest-ranked units alone, on {circuit.prompts} evaluation prompts, {circuit.ablation} "
                "ablation. Bands: 95 % over prompts."
            ]
            headline(figure, grid[0, :], title, lines)
            draw_faithfulness(figure.add_subplot(grid[1, 0]), circuit)
            draw_kl(figure.add_subplot(grid[1, 1]), circuit)
            return [save(figure, run.directory / self.filename, dpi)]


def draw_faithfulness(axes: Axes, circuit: CircuitInfo) -> None:
    """Faithfulness of the kept units and of the others, with 1 (dense) and 0 (empty) as lines."""
    for height, label in ((1.0, "dense"), (0.0, "empty")):
        axes.axhline(height, color=LINE, linewidth=0.8, linestyle=":")
        axes.annotate(
            label,
            (1.0, height),
            xytext=(2, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=6.5,
            color=QUIET,
        )
    for name, label, colour in (
        ("completeness", "all others (completeness)", QUIET),
        ("faithfulness", "kept units (faithfulness)", ACCENT["K"]),
    ):
        points = [point for point in circuit.curve if getattr(point, name) is not None and point.kept]
        shares = [100 * point.share for point in points]
        axes.plot(
            shares,
            [getattr(point, name) for point in points],
            marker="o",
            markersize=3,
            linewidth=1.2,
            color=colour,
            label=label,
        )
        ends = [getattr(point, f"{name}_interval") or [getattr(point, name)] * 2 for point in points]
        axes.fill_between(
            shares,
            [low for low, _ in ends],
            [high for _, high in ends],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.set_title("Faithfulness of the logit difference")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, LOWEST), min(high, HIGHEST))
    axes.legend(frameon=False, fontsize=6.5, loc="best")
    share_axis(axes, circuit.curve)


def draw_kl(axes: Axes, circuit: CircuitInfo) -> None:
    """KL at the answer of the kept units alone."""
    points = [point for point in circuit.curve if point.kl and point.kept]
    shares, values = [100 * point.share for point in points], [point.kl for point in points]
    axes.plot(shares, values, marker="o", markersize=3, linewidth=1.2, color=ACCENT["K"])
    if circuit.empty.kl:
        axes.axhline(circuit.empty.kl, color=LINE, linewidth=0.8, linestyle=":")
        axes.annotate(
            "empty", (shares[0] if shares else 1, circuit.empty.kl), xytext=(0, 2), textcoords="offset points",
            fontsize=6.5, color=QUIET,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title("KL to the dense model at the answer [nats]")
    share_axis(axes, circuit.curve)


def share_axis(axes: Axes, points: Sequence[CircuitPoint]) -> None:
    """Shares of the units in percent, on a log scale."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("units kept [%]")
    axes.set_xlim(80 * points[0].share, 125 * points[-1].share)


def circuit_context(run: RunFiles, drawn: set[str]) -> dict[str, Any]:
    """What circuit.md.jinja uses; drawn: the names of the figures that there are."""
    circuit = run.result.circuit
    faithful = None if circuit is None else circuit.faithfulness
    return {
        "task": run.result.task,
        "circuit": circuit,
        "distance": None if faithful is None else abs(1 - faithful),
        "verdict": run.result.verdict,
        "example_names": EXAMPLE_NAMES,
        "circuit_figure": CircuitFigure.filename if CircuitFigure.filename in drawn else None,
    }


def interval(ends: list[float] | None) -> str:
    """' (0.81 to 0.93)', or nothing."""
    return "" if ends is None else f" ({number(ends[0], 2)} to {number(ends[1], 2)})"
