"""How the mask was learned, step by step, and what came after the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mechint.reporting.context import Context
from mechint.reporting.finding import headline_lines
from mechint.reporting.style import (
    GRID,
    INK,
    LINE,
    QUIET,
    titled_figure,
    write,
)
from mechint.reporting.wording import measured, number
from mechint.results.run_files import RunFiles

Values = NDArray[np.float64]

WIDTH = 8.0  # inches
AFTER = 0.26  # of the steps' width, for what comes after them
OBJECTIVE, ACTUAL, TEMPERATURE, CHANGED = "#5b3e99", "#00806a", "#a8326e", "#4d5359"
OBJECTIVES = {"kl": "KL(dense || masked)\n[nats per token]", "nll": "next-token loss\n[nats per token]"}
SMOOTHED_FROM = 40  # points; below that the eye does it


class SparsityCurves:
    """sparsity_curves: objective, sparsity (scheduled, actual), temperature, switched units over steps.

    Where the steps end is marked, and right of it what the finishing pass reaches and what is measured on evaluation
    data. Panels whose numbers were not logged are left out; without any, so is the figure. Runs of several seeds or
    targets have no curves of their own.
    """

    stem: ClassVar[str] = "sparsity_curves"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture, where there were steps."""
        run = context.run
        if run.evidence is not None or context.is_ladder:
            return
        steps = column(run, "step")
        candidates: list[tuple[str, float, Callable[[Axes, Context, Values], None]]] = [
            ("loss", 2.1, draw_objective),
            ("sparsity", 1.9, draw_sparsity),
            ("temperature", 1.0, draw_temperature),
            ("changed_units", 1.0, draw_changed_units),
        ]
        panels = [(height, plot) for key, height, plot in candidates if np.isfinite(column(run, key)).any()]
        if not panels:
            return
        heights = [height for height, _ in panels]
        title = f"{run.model_name}: learning the mask"
        height = sum(heights) + 0.3 * len(heights) + 0.3
        figure, body = titled_figure(title, headline_lines(context), WIDTH, height)
        grid = body.subgridspec(len(heights), 1, height_ratios=heights)
        first: Axes | None = None
        for row, (_, plot) in enumerate(panels):
            axes = figure.add_subplot(grid[row], sharex=first)
            first = first or axes
            plot(axes, context, steps)
            finish(axes, steps, last=row == len(panels) - 1)
        yield self.stem, figure


def column(run: RunFiles, key: str) -> Values:
    """One logged quantity over the steps; NaN where a line does not have it."""
    values = (entry.get(key) for entry in run.history)
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def draw_objective(axes: Axes, context: Context, steps: Values) -> None:
    """The objective on the calibration batch of each step, with its running mean."""
    run, result = context.run, context.result
    loss = column(run, "loss")
    if len(loss) >= SMOOTHED_FROM and bool(np.isfinite(loss).all()):
        window = len(loss) // 20
        mean = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(steps, loss, color=OBJECTIVE, linewidth=0.7, alpha=0.4, label="each logged step")
        line(axes, steps[window - 1 :], mean, OBJECTIVE, label=f"mean of the last {window}")
        axes.legend(loc="upper left")
    else:
        line(axes, steps, loss, OBJECTIVE)
    name = result.mask.objective or "objective"
    axes.set_ylabel(OBJECTIVES.get(name, name))
    axes.set_title("Objective: while learning on calibration data, then what comes after")
    shown = [*loss[np.isfinite(loss)].tolist(), *draw_outcomes(axes, context, steps)]
    low, high = min(shown), max(shown)
    axes.set_ylim(
        min(0.0, low) if low < 0.5 * high else low - 0.08 * (high - low + 1e-9), high + 0.12 * (high - low)
    )


def draw_outcomes(axes: Axes, context: Context, steps: Values) -> list[float]:
    """Right of the steps: the objective before and after the finishing pass, and the held-out result; their values."""
    result, done = context.result, context.result.finishing
    last, width = float(steps[-1]), max(float(steps[-1] - steps[0]), 1.0)
    masked = result.metrics.masked
    held_out = {"kl": (masked.kl, masked.kl_se), "nll": (masked.loss, masked.loss_se)}
    other = (masked.objective, masked.objective_se)
    value, error = held_out.get(result.mask.objective or "", other)
    values: list[float] = []
    look: dict[str, Any] = {"size": 7.5, "annotation_clip": False}
    if done is not None and done.before is not None and done.after is not None:
        places = [last + 0.05 * width, last + 0.12 * width]
        axes.plot(places, [done.before, done.after], color=ACTUAL, marker="s", markersize=4, linewidth=1.2)
        text = f"finishing, on rows set aside:\n{number(done.before, 3)} → {number(done.after, 3)}"
        write(axes, text, (places[0], max(done.before, done.after)), (-2, 5), color=ACTUAL, **look)
        values += [done.before, done.after]
    if value is not None and np.isfinite(value):
        place = last + 0.2 * width
        axes.errorbar(
            [place], [value], yerr=[2 * (error or 0)], color=INK, marker="D", markersize=5, capsize=2
        )
        text = f"held out:\n{measured(value, error)}"
        write(axes, text, (place, value), (7, 0), color=INK, va="center", weight="bold", **look)
        values.append(value)
    return values


def draw_sparsity(axes: Axes, context: Context, steps: Values) -> None:
    """Scheduled sparsity and that of the hard mask, with the target and what the final mask has."""
    run = context.run
    target = run.result.sparsity.target
    if target is not None:
        axes.axhline(target, color=LINE, linewidth=0.8, linestyle=(0, (1, 2)))
    line(axes, steps, column(run, "sparsity"), ACTUAL, label="actual (hard mask)")
    dashes: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3))}
    scheduled = column(run, "scheduled_sparsity")
    if np.isfinite(scheduled).any():  # some methods know of the target only at the end
        axes.plot(steps, scheduled, label="scheduled", **dashes)
    axes.legend(loc="lower center")
    axes.set(ylim=(-0.03, 1.06), ylabel="sparsity\n[fraction removed]", yticks=[0, 0.25, 0.5, 0.75, 1])
    place = float(steps[-1]) + 0.2 * max(float(steps[-1] - steps[0]), 1.0)
    axes.plot([place], [run.result.sparsity.achieved], color=INK, marker="D", markersize=5)
    write(axes, "final mask", (place, run.result.sparsity.achieved), (-6, -12), size=7.5)
    axes.set_title("Sparsity" if target is None else f"Sparsity (target {target:g})")


def draw_temperature(axes: Axes, context: Context, steps: Values) -> None:
    """Temperature of the relaxed mask."""
    line(axes, steps, column(context.run, "temperature"), TEMPERATURE)
    axes.set_ylabel("temperature")
    axes.set_ylim(bottom=0)
    axes.set_title("Temperature")


def draw_changed_units(axes: Axes, context: Context, steps: Values) -> None:
    """Units that each logged step switched on or off in the hard mask."""
    line(axes, steps, column(context.run, "changed_units"), CHANGED, width=0.9)
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
    write(axes, f"{place[1]:.4g}", place, (-2, 7), ha="right", **look)


def finish(axes: Axes, steps: Values, last: bool) -> None:
    """Shared axis of steps: ticks everywhere, numbers below the last panel only; where the steps end."""
    end, width = float(steps[-1]), max(float(steps[-1] - steps[0]), 1.0)
    axes.axvspan(end, end + AFTER * width, color="#f3f4f5", zorder=-2)
    axes.axvline(end, color=LINE, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xticks([tick for tick in axes.get_xticks() if steps[0] <= tick <= end])
    axes.set_xlim(float(steps[0]) - 0.01 * width, end + AFTER * width)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelbottom=last)
    if last:
        axes.set_xlabel("step   (grey: after the steps)", color=QUIET)
