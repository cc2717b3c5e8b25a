"""What is lost against what is saved, over every run below a directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mechint.comparison.figures.looks import COLOURS, MARKERS, Dash, Look
from mechint.comparison.figures.page import PALE, new_page
from mechint.comparison.runs import BYTES_PER_ELEMENT
from mechint.comparison.study import Study
from mechint.reporting.style import LINE, QUIET, figure_style, save, write
from mechint.reporting.wording import byte_size, plural

WIDTH, PANEL = 8.4, 2.05  # inches
DASHES: tuple[Dash, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MOST_CURVES = 24  # in the key; more are drawn but counted there only

# A row of panels each: column of the points, title, axis.
QUANTITIES = (
    ("loss", "Loss of the masked model", "nats per token"),
    ("kl", "KL(dense || masked)", "nats per token"),
    ("faithfulness", "Faithfulness", "1: dense, 0: empty"),
)


class Pareto:
    """pareto.png: loss, KL and faithfulness against sparsity and against KV bytes per token, a curve per group.

    A mark is the mean over seeds, the bar through it reaches from the lowest to the highest seed.
    """

    filename: ClassVar[str] = "pareto.png"

    def draw(self, study: Study, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        looks = group_looks(study)
        rows = [quantity for quantity in QUANTITIES if study.points[quantity[0]].notna().any()]
        lines = [
            study_facts(study),
            "Mark: mean over seeds; bar: lowest to highest. Broken line: dense model; dotted: empty model.",
        ]
        if (hidden := len(looks) - MOST_CURVES) > 0:
            lines.append(f"{plural(hidden, 'further curve')} not in the key; see the table.")
        key = [(look, group, curve_facts(study, group)) for group, look in list(looks.items())[:MOST_CURVES]]
        title = f"What masks cost and what they save: runs below {study.root.name or study.root}"
        with figure_style():
            height = PANEL * max(1, len(rows)) + 0.1
            figure, body = new_page(WIDTH, height, title, lines, key, study.flags)
            if not rows:
                body.text(0.5, 0.5, "No finished run has numbers to draw.", ha="center", color=QUIET)
                return [save(figure, directory / self.filename, dpi)]
            grid = body.add_gridspec(len(rows), 2)
            for row, (name, heading, label) in enumerate(rows):
                left = body.add_subplot(grid[row, 0])
                right = body.add_subplot(grid[row, 1], sharey=left)
                for axes, place in ((left, "sparsity"), (right, "kv_bytes_per_token")):
                    for group, look in looks.items():
                        draw_curve(axes, study.curve(group), name, look, place)
                    axes.grid(color=PALE, linewidth=0.5)
                    axes.set_axisbelow(True)
                    axes.tick_params(labelbottom=row == len(rows) - 1)
                scale_values(left, study.points[name].dropna(), logarithmic=name == "kl")
                draw_references(left, right, study, looks, name)
                scale_sparsity(left, sorted(set(study.points["sparsity"].round(4))))
                scale_bytes(right, study.points["kv_bytes_per_token"])
                left.set_title(heading, weight="bold")
                left.set_ylabel(label)
                right.tick_params(labelleft=False, which="both")
            left.set_xlabel("sparsity (units removed)")
            right.set_xlabel("KV cache per token, kept channels only")
            return [save(figure, directory / self.filename, dpi)]


def group_looks(study: Study) -> dict[str, Look]:
    """A colour per checkpoint, a marker and dash per method on it; with one checkpoint a colour per method."""
    names = study.groups["checkpoint"]
    checkpoints, turns = list(dict.fromkeys(names)), names.groupby(names).cumcount()
    looks = {}
    for number, (group, name) in enumerate(names.items()):
        turn = dash = int(turns[group])
        colour = checkpoints.index(name)
        if len(checkpoints) in (1, len(names)):  # colours alone tell curves apart, as long as they last
            colour, turn, dash = number, number, number // len(COLOURS)
        marker = MARKERS[(turn + colour // len(COLOURS)) % len(MARKERS)]
        looks[str(group)] = Look(COLOURS[colour % len(COLOURS)], marker, DASHES[dash % len(DASHES)])
    return looks


def study_facts(study: Study) -> str:
    """What was run, and what is missing."""
    low, high = study.points["n"].min(), study.points["n"].max()
    per_point = f"{low} to {high} runs" if low < high else plural(low, "run")
    facts = [plural(len(study.runs), "finished run"), f"{per_point} per point"]
    statuses = [run.status for run in study.unfinished]
    facts += [f"{statuses.count(status)} {status}, not drawn" for status in dict.fromkeys(statuses)]
    digests = sorted({digest for digest in study.runs["evaluation_digest"] if digest})
    facts += [f"all measured on the same tokens ({digests[0][:8]})"] if len(digests) == 1 else []
    return " · ".join([*facts, f"cache at {BYTES_PER_ELEMENT} bytes per channel"])


def curve_facts(study: Study, group: str) -> list[str]:
    """'sparsity 50, 75 %', 'all channels 2 KiB per token'."""
    told = [f"{100 * sparsity:.4g}" for sparsity in study.curve(group)["sparsity"]]
    told = told if len(told) <= 8 else [*told[:4], "…", *told[-3:]]
    dense = byte_size(float(study.groups["dense_kv_bytes"][group]))
    return [f"sparsity {', '.join(told)} %", f"all channels {dense} per token"]


def draw_curve(axes: Axes, curve: pd.DataFrame, name: str, look: Look, place: str) -> None:
    """One curve with a mark and a bar at every sparsity."""
    curve = curve.dropna(subset=[name])
    for x, low, high in zip(curve[place], curve[f"{name}_low"], curve[f"{name}_high"], strict=True):
        if high > low:
            axes.plot([x, x], [low, high], color=look.colour, linewidth=1, marker="_", markersize=8)
    axes.plot(
        curve[place], curve[name], color=look.colour, linestyle=look.dash, linewidth=1.3, marker=look.marker,
        markersize=5, markeredgecolor="white", markeredgewidth=0.6,
    )  # fmt: skip


def draw_references(left: Axes, right: Axes, study: Study, looks: Mapping[str, Look], name: str) -> None:
    """Levels of the dense and the empty model; in grey where all groups share them, else in each one's colour."""
    for model, fixed, dash in (("dense", 1.0, (0, (4, 2))), ("empty", 0.0, (0, (1, 1.5)))):
        values = study.groups[f"{model}_loss"].dropna() if name == "loss" else pd.Series(dtype=float)
        levels = [(value, looks[str(group)].colour) for group, value in values.items()]
        if name == "faithfulness":
            levels = [(fixed, LINE)]
        elif len(values) and np.ptp(values) <= 0.01 * values.abs().max():
            levels = [(values.iloc[0], LINE)]
        for level, colour in dict.fromkeys(levels):
            for axes in (left, right):
                axes.axhline(level, color=colour, linestyle=dash, linewidth=1, alpha=0.9, zorder=1.5)
        if levels:
            height = sum(level for level, _ in levels) / len(levels)
            look: dict[str, Any] = {"va": "center", "size": 6.5, "color": QUIET, "annotation_clip": False}
            write(right, model, (1, height), (3, 0), **look).xycoords = right.get_yaxis_transform()


def scale_values(axes: Axes, values: pd.Series, logarithmic: bool) -> None:
    """The vertical axis: logarithmic where it is asked for, possible and the values span more than a decade."""
    low, high = values.min(), values.max()
    if logarithmic and low > 0 and high > 10 * low:
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain)
        # Between decades too, or an axis that spans less than one would have no number at all.
        axes.yaxis.set_minor_locator(LogLocator(10, subs=(2, 5)))
        axes.yaxis.set_minor_formatter(plain)
    elif logarithmic:
        axes.set_ylim(bottom=min(0, low) - 0.04 * (high - min(0, low)))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def scale_sparsity(axes: Axes, values: list[float]) -> None:
    """Sparsity in per cent, with ticks where there are points, as far as these do not touch."""
    span = max(0.02, values[-1] - values[0])
    axes.set_xlim(values[0] - 0.06 * span, values[-1] + 0.06 * span)
    ticks: list[float] = []
    for value in reversed(values):
        if not ticks or ticks[-1] - value >= 0.1 * span:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{100 * tick:.3g} %" for tick in ticks])


def scale_bytes(axes: Axes, values: pd.Series) -> None:
    """Bytes per token, logarithmic in powers of two where the values span more than a factor of four."""
    if values.min() > 0 and values.max() > 4 * values.min():
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(2, numticks=7))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_size(value)))
