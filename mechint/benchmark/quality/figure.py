"""KL against sparsity, a panel per model and a curve per method."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from mechint.analysis.describing import Record
from mechint.benchmark.quality.cells import KINDS
from mechint.benchmark.quality.table import FIGURE
from mechint.comparison.figures.looks import COLOURS, MARKERS, Look
from mechint.reporting.style import QUIET, figure_style, headline, new_figure, printable, save

PANEL, KEY, HEADER, LINE = (3.3, 2.7), 2.6, 0.75, 0.165  # inches
COLUMNS = 2
DASHES = {"iterative scorer": (0, (5, 1.5)), "one-shot scorer": (0, (1, 1))}
NAMED = {"default": "default", "variant of the default": "variants of the default"}


def draw_quality(record: Record, directory: Path) -> Path:
    """Draw kl_by_sparsity.png: mean over seeds, bars from the lowest to the highest seed."""
    points = record["summary"]["points"]
    models = list(dict.fromkeys(point["model"] for point in points))
    looks = method_looks(points)
    columns = min(COLUMNS, len(models))
    rows = math.ceil(len(models) / columns)
    entries = len(looks) + len({kind for kind, _ in looks.values()})
    height = max(rows * PANEL[1], entries * LINE + 0.3)
    with figure_style():
        figure = new_figure(columns * PANEL[0] + KEY, HEADER + height)
        outer = figure.add_gridspec(
            2, 2, height_ratios=[HEADER, height], width_ratios=[columns * PANEL[0], KEY]
        )
        seeds = max(point["seeds"] for point in points)
        passes = record["passes"]
        facts = [
            f"held-out KL(dense || masked), hard masks of the same size, at most {passes} passes each",
            (f"mean of {seeds} seeds, bars from lowest to highest" if seeds > 1 else "one seed")
            + "; dotted line: no K or V channel at all",
        ]
        headline(figure, outer[0, :], "What masks cost, by method", facts)
        grid = outer[1, 0].subgridspec(rows, columns)
        for number, model in enumerate(models):
            axes = figure.add_subplot(grid[number // columns, number % columns])
            draw_panel(axes, [point for point in points if point["model"] == model], looks)
            axes.set_title(printable(model, 36), weight="bold")
        draw_key(figure.add_subplot(outer[1, 1]), looks)
        return save(figure, directory / FIGURE, 150)


def method_looks(points: list[Record]) -> dict[str, tuple[str, Look]]:
    """Kind and look of every method: the default dark, colours by turn, dashes by kind."""
    kinds = {point["method"]: point["kind"] for point in points}
    looks: dict[str, tuple[str, Look]] = {}
    turn = 0
    for kind in KINDS:
        for method in sorted(name for name, its in kinds.items() if its == kind):
            if kind == "default":
                looks[method] = (kind, Look(COLOURS[0], MARKERS[0]))
                continue
            place = turn % (len(COLOURS) - 1)
            marker = MARKERS[(1 + place + 3 * (turn // (len(COLOURS) - 1))) % len(MARKERS)]
            looks[method] = (kind, Look(COLOURS[1 + place], marker, DASHES.get(kind, "-")))
            turn += 1
    return looks


def draw_panel(axes: Axes, points: list[Record], looks: dict[str, tuple[str, Look]]) -> None:
    """The curves of one model; sparsities at equal distances, KL logarithmic."""
    sparsities = sorted({point["sparsity"] for point in points})
    for method, (kind, look) in reversed(looks.items()):  # the default on top
        mine = sorted((p for p in points if p["method"] == method and p["kl"]), key=lambda p: p["sparsity"])
        places = [sparsities.index(point["sparsity"]) for point in mine]
        for place, point in zip(places, mine, strict=True):
            if point["seeds"] > 1:
                axes.plot(
                    [place] * 2, [point["kl"]["low"], point["kl"]["high"]], color=look.colour, linewidth=0.9
                )
        axes.plot(
            places, [point["kl"]["mean"] for point in mine], color=look.colour, linestyle=look.dash,
            linewidth=2.0 if kind == "default" else 1.1, marker=look.marker, markersize=4.5,
            markeredgecolor="white", markeredgewidth=0.5,
        )  # fmt: skip
    axes.axhline(points[0]["empty_kl"], color=QUIET, linestyle=(0, (1, 2)), linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(range(len(sparsities)), [f"{100 * sparsity:.3g} %" for sparsity in sparsities])
    axes.set_xlim(-0.25, len(sparsities) - 0.75)
    axes.set_xlabel("sparsity (units removed)")
    axes.set_ylabel("KL [nats per token]")
    axes.grid(color="#e6e8eb", linewidth=0.5)
    axes.set_axisbelow(True)


def draw_key(axes: Axes, looks: dict[str, tuple[str, Look]]) -> None:
    """All methods below the names of their kinds."""
    handles: list[Line2D] = []
    labels: list[str] = []
    for kind in KINDS:
        mine = [(method, look) for method, (its, look) in looks.items() if its == kind]
        if mine:
            handles.append(Line2D([], [], linestyle="none"))
            labels.append(NAMED.get(kind, f"{kind}s"))
        for method, look in mine:
            width = 2.0 if kind == "default" else 1.1
            handles.append(
                Line2D(
                    [],
                    [],
                    color=look.colour,
                    linestyle=look.dash,
                    linewidth=width,
                    marker=look.marker,
                    markersize=4.5,
                )
            )
            labels.append(printable(method, 34))
    axes.axis("off")
    legend = axes.legend(handles, labels, loc="upper left", borderaxespad=0, labelspacing=0.35)
    for label, words in zip(labels, legend.get_texts(), strict=True):
        if label in (*NAMED.values(), *(f"{kind}s" for kind in KINDS)):
            words.set(weight="bold", x=-20)
