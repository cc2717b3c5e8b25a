"""KL against sparsity in one clear picture: what a basis, or a method, is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from mechint.comparison.figures.looks import COLOURS, MARKERS, Look
from mechint.comparison.figures.page import PALE, new_page, shortened
from mechint.comparison.study import Study
from mechint.reporting.style import INK, QUIET, figure_style, save

MOST_NAMED = 8  # curves beside which there is room for a name
PANEL = (6.6, 4.0)  # inches
NARROWEST = 16  # ticks are at least this part of the axis apart


class KLBySparsity:
    """kl_by_sparsity.png: KL against sparsity, a panel per checkpoint, a named curve for each set of options.

    Line: mean over seeds; band: from the lowest to the highest; dots: runs. Curves that differ in nothing but their
    basis are named after it. Nothing is drawn where no curve has two sparsities, or a panel more than eight curves.
    """

    filename: ClassVar[str] = "kl_by_sparsity.png"

    def draw(self, study: Study, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        runs = study.runs[(study.runs["kl"] > 0) & (study.runs["kept"] > 0)]
        curves = runs.groupby(["sha256", "group"], sort=False)["sparsity"].nunique()
        panels = curves.groupby(level="sha256", sort=False).size()
        if not (curves > 1).any() or panels.max() > MOST_NAMED:
            return []
        # where every checkpoint has one curve per basis, the basis is what differs
        by_basis = runs["basis"].nunique() > 1 and (
            runs.groupby(["sha256", "basis"])["group"].nunique().max() == 1
        )
        runs = runs.assign(name=runs["basis"] if by_basis else runs["group"].str.split(" · ", n=1).str[-1])
        looks = {
            name: Look(COLOURS[turn % len(COLOURS)], MARKERS[turn % len(MARKERS)])
            for turn, name in enumerate(
                sorted(dict.fromkeys(runs["name"]), key=lambda name: name != "channels")
            )
        }
        seeds = runs.groupby(["group", "sparsity"]).size().max()
        band = f"Line: mean of {seeds} seeds; band: lowest to highest." if seeds > 1 else "One run per point."
        facts = [", ".join(dict.fromkeys(runs[column].astype(str))) for column in ("checkpoint", "method")]
        lines = [
            " · ".join([*facts, "KL from the dense model, hard masks, held-out data"]),
            f"{band} Dotted line: no units at all.",
        ]
        subject = "by the basis of its units" if by_basis else "by method"
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        with figure_style():
            title = f"What a mask costs, {subject}"
            size = (PANEL[0] * columns, PANEL[1] * rows)
            figure, body = new_page(*size, title, lines, [], study.flags)
            grid = body.add_gridspec(rows, columns)
            for number, (_, of_model) in enumerate(runs.groupby("sha256", sort=False)):
                axes = body.add_subplot(grid[divmod(number, columns)])
                draw_panel(axes, of_model, looks, "directions" if by_basis else "units")
                if len(panels) > 1:
                    axes.set_title(shortened(of_model["checkpoint"].iloc[0], 9, 250, True), weight="bold")
            return [save(figure, directory / self.filename, dpi)]


def draw_panel(axes: Axes, runs: pd.DataFrame, looks: dict[str, Look], unit: str) -> None:
    """One checkpoint: shares kept on a logarithmic axis, so that each halving takes as much room."""
    axes.set(xscale="log", yscale="log")
    runs = runs.assign(share=runs["kept"] / runs["total"])
    ends = []
    for name, mine in runs.groupby("name", sort=False):
        look, curve = looks[str(name)], mine.groupby("share")["kl"].agg(["mean", "min", "max"])
        axes.fill_between(curve.index, curve["min"], curve["max"], color=look.colour, alpha=0.2, linewidth=0)
        axes.scatter(mine["share"], mine["kl"], s=7, color=look.colour, linewidths=0)
        axes.plot(
            curve.index, curve["mean"], color=look.colour, linewidth=2, marker=look.marker, markersize=6,
            markeredgecolor="white",
        )  # fmt: skip
        ends.append((float(curve["mean"].iloc[0]), float(curve.index[0]), str(name), look.colour))
    shares = sorted(set(runs["share"]))
    room = (shares[-1] / shares[0]) ** 0.06 if len(shares) > 1 else 1.5
    axes.set_xlim(shares[-1] * room, shares[0] / room)
    empty = runs["empty_kl"].mean()
    if np.isfinite(empty):
        axes.axhline(empty, color=QUIET, linewidth=1, linestyle=(0, (1, 1.5)))
        place = axes.get_yaxis_transform()
        axes.text(0.01, empty * 1.02, "no units", va="bottom", size=7.5, color=QUIET, transform=place)
        axes.set_ylim(top=1.3 * max(empty, axes.get_ylim()[1] / 1.3))
    name_curves(axes, ends)
    least = np.log(shares[-1] / shares[0]) / NARROWEST
    ticks = shares[:1]
    for share in shares[1:]:
        if np.log(share / ticks[-1]) >= least:
            ticks.append(share)
    total = int(runs["total"].iloc[0])
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{100 * (1 - tick):.3g} %\n{round(tick * total):,}" for tick in ticks], color=INK)
    axes.set_xlabel(f"{unit} removed, K and V together (below: how many of {total:,} are kept)")
    axes.set_ylabel("KL(dense || masked), nats per token")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def name_curves(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """A curve's name beside its sparsest point; names that would touch move apart. ends: KL, share, name, colour."""
    ends = sorted(ends)
    heights, (low, high) = [np.log(value) for value, *_ in ends], np.log(axes.get_ylim())
    for _ in range(100):
        for i in range(len(heights) - 1):
            push = max(0.0, 0.05 * (high - low) - (heights[i + 1] - heights[i])) / 2
            heights[i], heights[i + 1] = heights[i] - push, heights[i + 1] + push
    for height, (_, share, name, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            shortened(name, 8.5, 190, True), (share, np.exp(height)), xytext=(9, 0), textcoords="offset points",
            va="center", size=8.5, weight="bold", color=colour, annotation_clip=False,
        )  # fmt: skip
