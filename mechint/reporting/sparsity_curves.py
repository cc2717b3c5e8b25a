"""How the mask was learned, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mechint.reporting.finding import headline_lines
from mechint.reporting.style import (
    INK,
    LINE,
    QUIET,
    figure_style,
    headline,
    new_figure,
    save,
    write,
    write_lines,
)
from mechint.results.run_files import RunFiles

Values = NDArray[np.float64]

HEADER, WIDTH = 0.75, 8.0  # inches
OBJECTIVE, ACTUAL, TEMPERATURE, CHANGED = "#5b3e99", "#00806a", "#a8326e", "#6b7178"
OBJECTIVES = {"kl": "KL(dense || masked)\n[nats per token]", "nll": "next-token loss\n[nats per token]"}
SMOOTHED_FROM = 40  # points; below that the eye does it


class SparsityCurves:
    """sparsity_curves.png: objective, sparsity (scheduled, actual), temperature, switched units over steps.

    Panels whose numbers were not logged are left out.
    """

    filename: ClassVar[str] = "sparsity_curves.png"

    def draw(self, run: RunFiles, dpi: int) -> list[Path]:
        """Draw the figure into the run's directory and return its path; seeds and targets have their own."""
        if run.evidence is not None or run.result.nested:
            return []
        steps = column(run, "step")
        candidates: list[tuple[str, float, Callable[[Axes, RunFiles, Values], None]]] = [
            ("loss", 1.9, draw_objective),
            ("sparsity", 1.9, draw_sparsity),
            ("temperature", 1.0, draw_temperature),
            ("changed_units", 1.0, draw_changed_units),
        ]
        panels = [(height, plot) for key, height, plot in candidates if np.isfinite(column(run, key)).any()]
        heights = [height for height, _ in panels] or [0.6]
        with figure_style():
            figure = new_figure(WIDTH, HEADER + sum(heights) + 0.3 * len(heights) + 0.3)
            grid = figure.add_gridspec(1 + len(heights), 1, height_ratios=[HEADER, *heights])
            headline(figure, grid[0], f"{run.model_name}: learning the mask", headline_lines(run))
            first: Axes | None = None
            for row, (_, plot) in enumerate(panels, start=1):
                axes = figure.add_subplot(grid[row], sharex=first)
                first = first or axes
                plot(axes, run, steps)
                finish(axes, last=row == len(panels))
            if not panels:
                write_lines(figure.add_subplot(grid[1]), [("No learning steps were logged.", {"size": 9})])
            return [save(figure, run.directory / self.filename, dpi)]


def column(run: RunFiles, key: str) -> Values:
    """One logged quantity over the steps; NaN where a line does not have it."""
    values = (entry.get(key) for entry in run.history)
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def draw_objective(axes: Axes, run: RunFiles, steps: Values) -> None:
    """The objective on the calibration batch of each step, with its running mean."""
    loss = column(run, "loss")
    if len(loss) >= SMOOTHED_FROM and bool(np.isfinite(loss).all()):
        window = len(loss) // 20
        mean = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(steps, loss, color=OBJECTIVE, linewidth=0.7, alpha=0.4, label="each logged step")
        line(axes, steps[window - 1 :], mean, OBJECTIVE, label=f"mean of the last {window}")
        axes.legend(loc="upper left")
    else:
        line(axes, steps, loss, OBJECTIVE)
    name = run.result.mask.objective or "objective"
    axes.set_ylabel(OBJECTIVES.get(name, name))
    axes.set_title("Objective on calibration data")
    lowest = float(np.nanmin(loss))
    axes.set_ylim(min(0.0, lowest) if lowest < 0.5 * float(np.nanmax(loss)) else None)


def draw_sparsity(axes: Axes, run: RunFiles, steps: Values) -> None:
    """Scheduled sparsity and that of the hard mask, with the target."""
    target = run.result.sparsity.target
    if target is not None:
        axes.axhline(target, color=LINE, linewidth=0.8, linestyle=(0, (1, 2)))
    line(axes, steps, column(run, "sparsity"), ACTUAL, label="actual (hard mask)")
    dashes: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3))}
    scheduled = column(run, "scheduled_sparsity")
    if np.isfinite(scheduled).any():  # some methods know of the target only at the end
        axes.plot(steps, scheduled, label="scheduled", **dashes)
    axes.legend(loc="lower right")
    axes.set(ylim=(-0.03, 1.06), ylabel="sparsity\n[fraction removed]", yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_title("Sparsity" if target is None else f"Sparsity (target {target:g})")


def draw_temperature(axes: Axes, run: RunFiles, steps: Values) -> None:
    """Temperature of the relaxed mask."""
    line(axes, steps, column(run, "temperature"), TEMPERATURE)
    axes.set_ylabel("temperature")
    axes.set_ylim(bottom=0)
    axes.set_title("Temperature")


def draw_changed_units(axes: Axes, run: RunFiles, steps: Values) -> None:
    """Units that each logged step switched on or off in the hard mask."""
    line(axes, steps, column(run, "changed_units"), CHANGED, width=0.9)
    axes.set_ylabel("units")
    axes.set_ylim(bottom=0)
    axes.set_title("Units that the step switched on or off")


def line(axes: Axes, steps: Values, values: Values, colour: str, width: float = 1.5, label: str = "") -> None:
    """A curve whose last value is written at its end, with a dot per point where there are few."""
    marker = "o" if len(steps) <= 30 else None
    axes.plot(
        steps, values, color=colour, linewidth=width, label=label, marker=marker, markersize=3, clip_on=False
    )
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return
    last = finite[-1]
    place = (float(steps[last]), float(values[last]))
    look: dict[str, Any] = {"color": colour, "size": 8, "weight": "bold", "annotation_clip": False}
    write(axes, f"{place[1]:.4g}", place, (4, 0), va="center", **look)


def finish(axes: Axes, last: bool) -> None:
    """Shared axis of steps: ticks everywhere, numbers below the last panel only."""
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.01)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelbottom=last)
    if last:
        axes.set_xlabel("step", color=QUIET)
