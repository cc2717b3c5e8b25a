"""What masks of several sizes from one run do, in one figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mechint.reporting.context import Context
from mechint.reporting.style import (
    ACCENT,
    LINE,
    QUIET,
    titled_figure,
    write,
)
from mechint.reporting.wording import number
from mechint.results.result import NestedPoint

MASKED, COMPLEMENT, RANDOM = ACCENT["K"], QUIET, ACCENT["V"]
WIDTH, HEIGHT = 9.6, 3.0  # inches

# Width of a label as a share of an axis.
ROOM = 0.13


class NestedFigure:
    """nested_sparsities: KL, agreement and faithfulness of several masks of one run against their sparsity."""

    stem: ClassVar[str] = "nested_sparsities"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture, for runs of several masks."""
        points = sorted(context.result.nested or [], key=lambda point: point.achieved)
        if not points:
            return
        nested = "Every mask keeps a part of the one before; " if context.is_ladder else ""
        lines = [f"{nested}each is measured on evaluation data, bars: two standard errors."]
        what = "nested masks" if context.is_ladder else "masks tried"
        title = f"{context.run.model_name}: {len(points)} {what} from one run"
        figure, body = titled_figure(title, lines, WIDTH, HEIGHT)
        grid = body.subgridspec(1, 3)
        empty = context.result.metrics.empty
        draw_values(figure.add_subplot(grid[0]), points, "kl", empty.kl)
        draw_values(figure.add_subplot(grid[1]), points, "top1_agreement", empty.top1_agreement)
        draw_faithfulness(figure.add_subplot(grid[2]), points)
        yield self.stem, figure


TITLES = {
    "kl": "KL to the dense model [nats per token]",
    "top1_agreement": "Same top token [share of positions]",
}


def draw_values(axes: Axes, points: list[NestedPoint], name: str, empty: float | None) -> None:
    """A measure of the kept and of the removed units alone, and the empty model's as a line; KL on a log scale."""
    for model, label, colour in (
        ("complement", "removed alone", COMPLEMENT),
        ("masked", "kept alone", MASKED),
    ):
        found = [getattr(point.metrics, model) for point in points]
        values = [getattr(metrics, name) for metrics in found]
        errors = [getattr(metrics, f"{name}_se") for metrics in found]
        curve(axes, points, values, errors, label, colour, written=model == "masked")
    if name == "kl":
        random = [point.random_masks.kl_mean if point.random_masks else None for point in points]
        curve(axes, points, random, [None] * len(points), "matched random masks", RANDOM)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if empty is not None:
        axes.axhline(empty, color=LINE, linewidth=0.8, linestyle=":", label="no units (empty)")
    axes.set_title(TITLES[name])
    axes.legend(fontsize=6.5, loc="best")
    axes.margins(x=0.08, y=0.18)
    sparsity_axis(axes, points)


def draw_faithfulness(axes: Axes, points: list[NestedPoint]) -> None:
    """Faithfulness of each mask, with the dense and the empty model's as lines."""
    values = [point.faithfulness for point in points]
    errors = [point.faithfulness_se for point in points]
    curve(axes, points, values, errors, "kept alone", MASKED, written=True)
    for level, name in ((1.0, "dense"), (0.0, "empty")):
        axes.axhline(level, color=LINE, linewidth=0.8, linestyle=":")
        place = (points[0].achieved, level)
        write(axes, name, place, (-4, 2), size=6.5, color=QUIET)
    axes.set_title("Faithfulness (1: dense, 0: empty)")
    axes.margins(x=0.08, y=0.12)
    sparsity_axis(axes, points)


def curve(
    axes: Axes,
    points: list[NestedPoint],
    values: list[float | None],
    errors: list[float | None],
    label: str,
    colour: str,
    written: bool = False,
) -> None:
    """Values at the masks' sparsities with bars of two standard errors, as far as they are known."""
    shown = [
        (point.achieved, value, 2 * (error or 0))
        for point, value, error in zip(points, values, errors, strict=True)
        if value is not None
    ]
    if not shown:
        return
    places, heights, bars = zip(*shown, strict=True)
    look: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.2, "capsize": 2}
    axes.errorbar(places, heights, yerr=bars, color=colour, label=label, **look)
    labelled = with_room(places) if written else []
    for place, height in zip(places, heights, strict=True):
        if place in labelled:
            write(axes, number(height, 3), (place, height), (0, -9), ha="center", size=6.5)


def with_room(places: Sequence[float]) -> list[float]:
    """The places, from the last one on, whose labels do not run into each other."""
    room = ROOM * max(places[-1] - places[0], 1e-9)
    chosen = [places[-1]]
    for place in reversed(places[:-1]):
        if chosen[-1] - place > room:
            chosen.append(place)
    return chosen


def sparsity_axis(axes: Axes, points: list[NestedPoint]) -> None:
    """Ticks at the sparsities reached, as far as their labels have room."""
    axes.xaxis.set_major_locator(FixedLocator(with_room([point.achieved for point in points])))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.set_xlabel("sparsity: units removed")
