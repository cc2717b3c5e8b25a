"""What is lost against what is saved, over every run below a directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mechint.comparison.figures.looks import COLOURS, MARKERS, Dash, Look
from mechint.comparison.figures.page import PALE, new_page, shortened
from mechint.comparison.runs import BYTES_PER_ELEMENT
from mechint.comparison.study import Study
from mechint.reporting.style import INK, LINE, QUIET, figure_style, save, write
from mechint.reporting.wording import byte_size, plural

WIDTH, PANEL = 8.4, 2.05  # inches
DASHES: tuple[Dash, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MOST_CURVES = 24  # in the key; more are drawn but counted there only
MOST_LABELLED = 8  # curves beside which there is room for a name


@dataclass(frozen=True)
class Quantity:
    """A row of panels. name: of a column of the points. logarithmic: drawn so where the values differ widely."""

    name: str
    title: str
    label: str
    logarithmic: bool = False


QUANTITIES = (
    Quantity("loss", "Loss of the masked model", "nats per token"),
    Quantity("kl", "KL(dense || masked)", "nats per token", logarithmic=True),
    Quantity("faithfulness", "Faithfulness", "1: dense, 0: empty"),
)


class Pareto:
    """pareto.png: loss, KL and faithfulness against sparsity and against KV bytes per token, a curve per group.

    A mark is the mean over seeds, the bar through it reaches from the lowest to the highest seed.
    """

    filename: ClassVar[str] = "pareto.png"

    def draw(self, study: Study, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        looks = group_looks(study)
        rows = [quantity for quantity in QUANTITIES if study.points[quantity.name].notna().any()]
        quiet = "Mark: mean over seeds; bar: from the lowest to the highest. Broken line: dense model; dotted: empty."
        hidden = len(looks) - MOST_CURVES
        more = [f"{plural(hidden, 'further curve')} not in the key; see the table."] if hidden > 0 else []
        key = [(look, group, curve_facts(study, group)) for group, look in list(looks.items())[:MOST_CURVES]]
        title = f"What masks cost and what they save: runs below {study.root.name or study.root}"
        lines = [study_facts(study), quiet, *more]
        with figure_style():
            figure, body = new_page(WIDTH, PANEL * max(1, len(rows)) + 0.1, title, lines, key, study.flags)
            if not rows:
                body.text(0.5, 0.5, "No finished run has numbers to draw.", ha="center", color=QUIET)
                return [save(figure, directory / self.filename, dpi)]
            grid = body.add_gridspec(len(rows), 2)
            for row, quantity in enumerate(rows):
                left = body.add_subplot(grid[row, 0])
                right = body.add_subplot(grid[row, 1], sharey=left)
                for axes, place in ((left, "sparsity"), (right, "kv_bytes_per_token")):
                    for group, look in looks.items():
                        draw_curve(axes, study.curve(group), quantity.name, look, place)
                    axes.grid(color=PALE, linewidth=0.5)
                    axes.set_axisbelow(True)
                scale_values(left, study.points[quantity.name].dropna(), quantity.logarithmic)
                for axes in (left, right):
                    draw_references(axes, study, looks, quantity, named=axes is right)
                last = row == len(rows) - 1
                scale_sparsity(left, study.points["sparsity"], last)
                scale_bytes(right, study.points["kv_bytes_per_token"], last)
                left.set_title(quantity.title, weight="bold")
                left.set_ylabel(quantity.label)
                right.tick_params(labelleft=False, which="both")
            return [save(figure, directory / self.filename, dpi)]


class KLBySparsity:
    """kl_by_sparsity.png: KL against sparsity, a panel per checkpoint, a named curve for each set of options.

    Line: mean over seeds; band: from the lowest to the highest; dots: runs. Curves that differ in nothing but their
    basis are named after it. Nothing where no curve has two sparsities with a KL above 0, or more than eight in a panel.
    """

    filename: ClassVar[str] = "kl_by_sparsity.png"

    def draw(self, study: Study, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        runs = study.runs[(study.runs["kl"] > 0) & (study.runs["kept"] > 0)]
        panels = {
            str(sha): list(dict.fromkeys(of_model["group"]))
            for sha, of_model in runs.groupby("sha256", sort=False)
        }
        sparsities = runs.groupby("group")["sparsity"].nunique()
        if not any(sparsities > 1) or max(map(len, panels.values())) > MOST_LABELLED:
            return []
        by_basis = runs["basis"].nunique() > 1 and all(
            runs[runs["group"].isin(groups)].groupby("basis")["group"].nunique().max() == 1
            for groups in panels.values()
        )
        looks = basis_looks(study, by_basis)
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        subject = "in each basis of its units" if by_basis else "by method"
        seeds = runs.groupby(["group", "sparsity"])["kl"].size().max()
        band = (
            f"Line: mean of {seeds} seeds; band: from the lowest to the highest" if seeds > 1 else "One seed"
        )
        lines = [study_facts(study, short=True), f"{band}. Dotted: no units at all. Lower is better."]
        width = 7.2 if columns == 1 else 10.8
        with figure_style():
            title = f"How far a masked model is from the dense one, {subject}"
            figure, body = new_page(width, 4.0 * rows, title, lines, [], study.flags)
            grid = body.add_gridspec(rows, columns)
            for number, (sha, groups) in enumerate(panels.items()):
                axes = body.add_subplot(grid[divmod(number, columns)])
                of_model = runs[runs["sha256"] == sha]
                self._panel(axes, study, of_model, {group: looks[group] for group in groups}, by_basis)
                if len(panels) > 1:
                    axes.set_title(shortened(of_model["checkpoint"].iloc[0], 9, 250, True), weight="bold")
            return [save(figure, directory / self.filename, dpi)]

    def _panel(
        self, axes: Axes, study: Study, runs: pd.DataFrame, looks: dict[str, Look], by_basis: bool
    ) -> None:
        """One checkpoint: shares kept on a logarithmic axis, so that each halving takes as much room."""
        axes.set(xscale="log", yscale="log")
        ends = []
        for group, look in looks.items():
            mine = runs[runs["group"] == group]
            curve = mine.groupby("kept")["kl"].agg(["mean", "min", "max"])[::-1]
            share = curve.index / mine["total"].iloc[0]
            style: dict[str, Any] = {"color": look.colour, "linestyle": look.dash}
            if (curve["max"] > curve["min"]).any():
                axes.fill_between(
                    share, curve["min"], curve["max"], color=look.colour, alpha=0.2, linewidth=0
                )
                axes.scatter(mine["kept"] / mine["total"], mine["kl"], s=6, color=look.colour, linewidths=0)
            axes.plot(
                share,
                curve["mean"],
                linewidth=2,
                marker=look.marker,
                markersize=5.5,
                markeredgecolor="white",
                **style,
            )
            name = mine["basis"].iloc[0] if by_basis else group.split(" · ", 1)[-1]
            ends.append((float(curve["mean"].iloc[-1]), float(share[-1]), name, look.colour))
        shares = sorted({kept / total for kept, total in zip(runs["kept"], runs["total"], strict=True)})
        room = (shares[-1] / shares[0]) ** 0.06 if len(shares) > 1 else 1.5
        axes.set_xlim(shares[-1] * room, shares[0] / room)
        empty = runs["empty_kl"].dropna()
        if len(empty):
            axes.axhline(empty.mean(), color=QUIET, linewidth=1, linestyle=(0, (1, 1.5)))
        low, high = axes.get_ylim()
        axes.set_ylim(low, max(high, 1.15 * empty.mean() if len(empty) else high))
        self._name(axes, ends)
        if len(empty):
            place = axes.get_yaxis_transform()
            axes.text(0.01, empty.mean(), "no units", va="bottom", size=7, color=QUIET, transform=place)
        total = int(runs["total"].iloc[0])
        ticks = spread_out(shares)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{100 * (1 - t):.3g} %\n{round(t * total):,}" for t in ticks], color=INK)
        kinds = "directions" if by_basis else "units"
        axes.set_xlabel(f"{kinds} removed, of {total:,}, K and V together (below: kept)")
        axes.set_ylabel("KL(dense || masked), nats per token")
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)

    def _name(self, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
        """A curve's name beside its sparsest point, moved so that no two names touch."""
        low, high = np.log(axes.get_ylim())
        least, at = 0.052 * (high - low), -np.inf
        for value, share, name, colour in sorted(ends):
            at = max(np.log(value), at + least)
            words = shortened(name, 8.5, 150, True)
            axes.annotate(
                words, (share, np.exp(at)), xytext=(9, 0), textcoords="offset points", va="center",
                size=8.5, weight="bold", color=colour, annotation_clip=False,
            )  # fmt: skip


def spread_out(shares: Sequence[float]) -> list[float]:
    """Of ascending shares those for which there is a tick: none closer than a sixteenth of the axis to another."""
    least = np.log(shares[-1] / shares[0]) / 16 if len(shares) > 1 else 0.0
    ticks: list[float] = []
    for share in shares:
        if not ticks or np.log(share / ticks[-1]) >= least:
            ticks.append(share)
    return ticks


def group_looks(study: Study) -> dict[str, Look]:
    """A colour per checkpoint, a marker and dash per method on it; with one checkpoint a colour per method."""
    checkpoints = list(dict.fromkeys(study.groups["checkpoint"]))
    seen: dict[str, int] = {}
    looks = {}
    for number, (group, name) in enumerate(study.groups["checkpoint"].items()):
        turn = seen[name] = seen.get(name, -1) + 1
        colour, dash = checkpoints.index(name), turn
        if len(checkpoints) in (
            1,
            len(study.groups),
        ):  # colours alone tell curves apart, as long as they last
            colour, turn, dash = number, number, number // len(COLOURS)
        marker = MARKERS[(turn + colour // len(COLOURS)) % len(MARKERS)]
        looks[str(group)] = Look(COLOURS[colour % len(COLOURS)], marker, DASHES[dash % len(DASHES)])
    return looks


def basis_looks(study: Study, by_basis: bool) -> dict[str, Look]:
    """Curves of one basis, or else of one method, have one colour in all panels."""
    names = (
        study.groups["basis"]
        if by_basis
        else pd.Series([group.split(" · ", 1)[-1] for group in study.groups.index], index=study.groups.index)
    )
    order = list(dict.fromkeys(names))
    return {
        str(group): Look(COLOURS[order.index(name) % len(COLOURS)], MARKERS[order.index(name) % len(MARKERS)])
        for group, name in names.items()
    }


def study_facts(study: Study, short: bool = False) -> str:
    """What was run, and what is missing."""
    seeds, shared = study.points["n"], study.groups
    per_point = (
        f"{seeds.min()} to {seeds.max()} runs" if seeds.min() < seeds.max() else plural(seeds.min(), "run")
    )
    facts = [plural(len(study.runs), "finished run"), f"{per_point} per point"]
    if short:
        facts = [
            name
            for column in ("checkpoint", "method")
            if len(set(shared[column])) == 1
            for name in shared[column][:1]
        ]
        facts += [f"{per_point} per point"]
    for status in dict.fromkeys(run.status for run in study.unfinished):
        facts.append(f"{sum(run.status == status for run in study.unfinished)} {status}, not drawn")
    digests = sorted({digest for digest in study.runs["evaluation_digest"] if digest})
    if len(digests) == 1:
        facts.append(f"all measured on the same tokens ({digests[0][:8]})")
    return " · ".join(facts if short else [*facts, f"cache at {BYTES_PER_ELEMENT} bytes per channel"])


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


def draw_references(
    axes: Axes, study: Study, looks: dict[str, Look], quantity: Quantity, named: bool
) -> None:
    """Levels of the dense and the empty model; in grey where all groups share them, else in each one's colour."""
    if quantity.name == "kl":
        return
    for name, dash in (("dense", (0, (4, 2))), ("empty", (0, (1, 1.5)))):
        values = study.groups[f"{name}_loss"].dropna()
        levels = [(value, looks[str(group)].colour) for group, value in values.items()]
        if quantity.name == "faithfulness":
            levels = [(1.0 if name == "dense" else 0.0, LINE)]
        elif len(values) and np.ptp(values) <= 0.01 * np.abs(values).max():
            levels = [(values.iloc[0], LINE)]
        for level, colour in dict.fromkeys(levels):
            axes.axhline(level, color=colour, linestyle=dash, linewidth=1, alpha=0.9, zorder=1.5)
        if named and levels:
            height = sum(level for level, _ in levels) / len(levels)
            look: dict[str, Any] = {"va": "center", "size": 6.5, "color": QUIET, "annotation_clip": False}
            write(axes, name, (1, height), (3, 0), **look).xycoords = axes.get_yaxis_transform()


def scale_values(axes: Axes, values: pd.Series, logarithmic: bool) -> None:
    """The vertical axis: logarithmic where it is asked for, possible and the values span more than a decade."""
    low, high = values.min(), values.max()
    if logarithmic and low > 0 and high > 10 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        # Between decades too, or an axis that spans less than one would have no number at all.
        axes.yaxis.set_minor_locator(LogLocator(10, subs=(2, 5)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif logarithmic:
        axes.set_ylim(bottom=min(0, low) - 0.04 * (high - min(0, low)))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def scale_sparsity(axes: Axes, sparsities: pd.Series, last: bool) -> None:
    """Sparsity in per cent, with ticks where there are points, as far as these do not touch."""
    values = sorted(set(sparsities.round(4)))
    span = max(0.02, values[-1] - values[0])
    axes.set_xlim(values[0] - 0.06 * span, values[-1] + 0.06 * span)
    ticks: list[float] = []
    for value in reversed(values):
        if not ticks or ticks[-1] - value >= 0.1 * span:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{100 * tick:.3g} %" for tick in ticks])
    axes.tick_params(labelbottom=last)
    axes.set_xlabel("sparsity (units removed)" if last else "")


def scale_bytes(axes: Axes, values: pd.Series, last: bool) -> None:
    """Bytes per token, logarithmic in powers of two where the values span more than a factor of four."""
    if values.min() > 0 and values.max() > 4 * values.min():
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(2, numticks=7))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_size(value)))
    axes.tick_params(labelbottom=last)
    axes.set_xlabel("KV cache per token, kept channels only" if last else "")
