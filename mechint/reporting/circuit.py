"""What the report says of tasks, circuits and gates, and the curve of a circuit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mechint.reporting.context import Context
from mechint.reporting.style import ACCENT, LINE, QUIET, titled_figure
from mechint.results.circuit import CircuitInfo, CircuitPoint

EXAMPLE_NAMES = {
    "clean": "Prompt",
    "corrupted": "Paired prompt",
    "right": "Right",
    "wrong": "Wrong",
}

# Beyond, faithfulness says no more than that a circuit does something else.
LOWEST, HIGHEST = -1.0, 2.0


# Units that the report tells of.
SHOWN = 10
WIDTH, HEIGHT = 9.6, 3.2  # inches


class CircuitFigure:
    """circuit: faithfulness and completeness of circuits against their size, with intervals. For tasks only."""

    stem: ClassVar[str] = "circuit"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture, for runs on a task."""
        circuit, task = context.result.circuit, context.result.task
        if circuit is None or not circuit.curve or task is None:
            return
        about = (
            f"The highest-ranked units alone, on {circuit.prompts} evaluation prompts, {circuit.ablation} ablation. "
            "Bands: 95 % over prompts."
        )
        title = f"{context.run.model_name}: circuits of {task.name} by size"
        figure, body = titled_figure(title, [about], WIDTH, HEIGHT)
        grid = body.subgridspec(1, 2)
        draw_faithfulness(figure.add_subplot(grid[0]), circuit)
        draw_kl(figure.add_subplot(grid[1]), circuit)
        yield self.stem, figure


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
    if circuit.tells:
        axes.legend(frameon=False, fontsize=6.5, loc="best")
    else:
        why = "not given: the dense model's logit difference\nis not distinguished from the empty one's"
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", fontsize=7, color=QUIET)
    share_axis(axes, circuit.curve)


def draw_kl(axes: Axes, circuit: CircuitInfo) -> None:
    """KL at the answer of the kept units alone."""
    points = [
        (100 * point.share, point.kl, *(point.kl_interval or (point.kl, point.kl)))
        for point in circuit.curve
        if point.kl and point.kept
    ]
    shares, values, low, high = zip(*points, strict=True) if points else ((), (), (), ())
    axes.plot(shares, values, marker="o", markersize=3, linewidth=1.2, color=ACCENT["K"])
    if points:
        axes.fill_between(shares, low, high, color=ACCENT["K"], alpha=0.15, linewidth=0)
    if circuit.empty.kl:
        axes.axhline(circuit.empty.kl, color=LINE, linewidth=0.8, linestyle=":")
        axes.annotate(
            "empty",
            (1.0, circuit.empty.kl),
            xytext=(2, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=6.5,
            color=QUIET,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # the values may lie within one decade
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


def circuit_facts(context: Context) -> dict[str, Any]:
    """What circuit.md.jinja uses beside the result."""
    circuit = context.result.circuit
    faithful = None if circuit is None else circuit.faithfulness
    return {
        "distance": None if faithful is None else abs(1 - faithful),
        "example_names": EXAMPLE_NAMES,
        "untold": untold(context),
        "meanings": [] if context.run.meanings is None else context.run.meanings.units[:SHOWN],
    }


def untold(context: Context) -> list[str]:
    """What pictures of a circuit and texts on its units could not show, and why."""
    files = (context.run.drawing, context.run.meanings)
    return list(dict.fromkeys(note for one in files if one is not None for note in one.notes))
