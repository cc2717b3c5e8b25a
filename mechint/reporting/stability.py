"""What several seeds agree on, and what every kept unit is worth, in one figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from mechint.reporting.certainty import headline_of_seeds
from mechint.reporting.context import KINDS, PARTS, Context, Kind
from mechint.reporting.finding import headline_lines
from mechint.reporting.style import (
    ACCENT,
    EMPTY,
    INK,
    KEPT,
    QUIET,
    Caution,
    index_ticks,
    panel_looks,
    titled_figure,
    write,
    write_lines,
)
from mechint.reporting.wording import measured, plural
from mechint.results.result import InertnessInfo, StabilityInfo

FOOTER, TALLEST, LOWEST, BARS, NECESSITY = 1.5, 0.42, 0.12, 2.6, 4.0  # inches
ADDED, REMOVED = "#00806a", "#5f656c"
WIDE = 30  # a range of so many medians is drawn logarithmically


class StabilityFigure:
    """stability: per layer how many channels how many seeds keep, and the necessity of each kept unit; below, the KL of
    all masks and of random variations. Drawn for runs of several seeds only.
    """

    stem: ClassVar[str] = "stability"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture, for runs of several seeds."""
        stability = context.result.stability
        if not stability or context.run.evidence is None:
            return
        layers, width = len(context.layers), 2 * BARS + NECESSITY
        body = max(1.2, layers * min(TALLEST, max(LOWEST, 6.0 / layers)))
        warnings = [line for line in headline_lines(context) if isinstance(line, Caution)]
        title, lines = (
            f"{context.run.model_name}: how sure the mask is",
            [*headline_of_seeds(stability), *warnings],
        )
        figure, place = titled_figure(title, lines, width + 0.6, body + FOOTER + 1.4)
        grid = place.subgridspec(2, 3, width_ratios=[BARS, BARS, NECESSITY], height_ratios=[body, FOOTER])
        for column, kind in enumerate(KINDS):
            axes = figure.add_subplot(grid[0, column])
            draw_counts(axes, context, kind, seed_counts(context, kind), labelled=column == 0)
        draw_necessity(figure.add_subplot(grid[0, 2]), context)
        draw_masks(figure.add_subplot(grid[1, :2]), stability)
        draw_subsets(figure.add_subplot(grid[1, 2]), stability.inertness)
        yield self.stem, figure


def seed_counts(context: Context, kind: Kind) -> NDArray[np.int64]:
    """[L, S + 1]: how many of the layer's channels exactly 0, 1, ..., S seeds keep."""
    assert context.run.evidence is not None
    assert context.result.stability is not None
    seeds = len(context.result.stability.seeds)
    frequencies = [context.run.evidence[layer.name, PARTS[kind]].frequency for layer in context.layers]
    chosen = [(frequency * seeds).round().long().flatten() for frequency in frequencies]
    return np.array([np.bincount(one.numpy(), minlength=seeds + 1) for one in chosen])


def draw_counts(axes: Axes, context: Context, kind: Kind, counts: NDArray[np.int64], labelled: bool) -> None:
    """One bar per layer, as a part of it: channels that all seeds keep, then those that fewer and fewer keep."""
    scale = 100 / counts.sum(1)
    seeds = counts.shape[1] - 1
    left = np.zeros(len(counts))
    rows = np.arange(len(counts))
    for times in range(seeds, 0, -1):
        shade = KEPT[kind]((times - 1) / max(seeds - 1, 1))
        label = f"all {seeds} seeds" if times == seeds else plural(times, "seed")
        axes.barh(rows, scale * counts[:, times], left=left, height=0.74, color=shade, label=label)
        left += scale * counts[:, times]
    kept = [int(context.cells(layer, kind).kept.sum()) for layer in context.layers]
    axes.scatter(
        scale * kept, rows, marker="|", s=60, color=INK, linewidths=1.4, zorder=3, label="in the consensus"
    )
    axes.set(ylim=(len(counts) - 0.4, -0.6), xlabel=f"% of the layer's {kind} {context.noun}s")
    axes.set_xlim(0, 1.35 * max(float(left.max()), 1.0))
    axes.set_title(f"{kind}: kept by how many seeds", color=ACCENT[kind], weight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_yticks(layer_ticks(context), layer_names(context) if labelled else [])
    axes.set_ylabel("layer" if labelled else "")
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 6:  # the ends tell the direction
        handles, labels = ([items[0], items[1], items[-1]] for items in (handles, labels))
    axes.legend(handles, labels, loc="lower right", handlelength=1, fontsize=7)


def draw_necessity(axes: Axes, context: Context) -> None:
    """A dot per kept unit at the rise of the KL without it; hollow where that is not told from noise."""
    assert context.run.evidence is not None
    assert context.result.stability is not None
    tested = context.result.stability.necessity
    if not tested:
        write_lines(axes, [("Units were not removed one by one.", {"size": 8, "color": QUIET})])
        return
    everything: list[float] = []
    for row, layer in enumerate(context.layers):
        for kind, shift in zip(KINDS, (-0.19, 0.19), strict=True):
            rise, clear = unit_values(context, layer.name, kind)
            look: dict[str, Any] = {"s": 13, "linewidths": 0.7, "clip_on": False, "zorder": 3}
            for chosen, face in ((clear, ACCENT[kind]), (~clear, "white")):
                axes.scatter(
                    rise[chosen],
                    np.full(int(chosen.sum()), row + shift),
                    facecolor=face,
                    edgecolor=ACCENT[kind],
                    **look,
                )
            everything += rise.tolist()
    sizes = np.abs(everything)
    if sizes.max() > WIDE * np.median(sizes) > 0:
        axes.set_xscale("symlog", linthresh=float(np.median(sizes)), linscale=0.7)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(
        ylim=(len(context.layers) - 0.4, -0.6), xlabel="rise of the KL without the unit [nats per token]"
    )
    axes.set_yticks(layer_ticks(context), layer_names(context))
    panel_looks(axes)
    for kind in KINDS:
        axes.scatter([], [], s=13, color=ACCENT[kind], label=f"{kind}, above 0")
    axes.scatter(
        [], [], s=13, facecolor="white", edgecolor=QUIET, linewidths=0.7, label="not shown to be above 0"
    )
    axes.legend(loc="best", handletextpad=0.1, frameon=True, framealpha=0.85, edgecolor="none", fontsize=7)
    axes.set_title("Necessity of each kept unit", weight="bold")


def unit_values(context: Context, layer: str, kind: Kind) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Necessity of the tested units of one layer and kind, once for each unit, and whether it is told from 0.

    As the report counts it, by the false discovery rate; by two standard errors in files that hold none.
    """
    assert context.run.evidence is not None
    assert context.result.stability is not None
    assert context.result.stability.necessity is not None
    part, rate = context.run.evidence[layer, PARTS[kind]], context.result.stability.necessity.rate
    rise, error, q, unit = (
        values.flatten().double().numpy()
        for values in (part.necessity, part.necessity_error, part.necessity_q, part.unit)
    )
    _, first = np.unique(unit, return_index=True)
    first = first[np.isfinite(rise[first])]
    rise, error, q = rise[first], error[first], q[first]
    clear = np.abs(rise) > 2 * np.nan_to_num(error)
    return rise, clear if rate is None else np.where(np.isfinite(q), q <= rate, clear)


def draw_masks(axes: Axes, stability: StabilityInfo) -> None:
    """KL of every seed's own mask and of the consensus."""
    single, consensus = stability.single.kl, stability.consensus.kl
    axes.scatter(single, [0] * len(single), s=34, color=QUIET, alpha=0.75, linewidths=0, clip_on=False)
    axes.scatter([consensus], [1], s=46, color=INK, marker="D", clip_on=False)
    shown = measured(consensus, stability.consensus.kl_se)
    write(axes, shown, (consensus, 1), (7, 0), va="center", size=8, weight="bold")
    low, high = min([*single, consensus]), max([*single, consensus])
    pad = max(0.15 * (high - low), 0.02 * high, 1e-3)
    axes.set(
        xlim=(low - pad, high + 2 * pad), ylim=(1.6, -0.6), xlabel="KL to the dense model [nats per token]"
    )
    axes.set_yticks([0, 1], ["each seed", "consensus"])
    panel_looks(axes)
    axes.set_title("The seeds' masks and their consensus, on the same evaluation data", weight="bold")


def draw_subsets(axes: Axes, inertness: InertnessInfo | None) -> None:
    """Change of the KL when random removed units are added back, and when as many kept ones are removed."""
    if not inertness:
        write_lines(axes, [("No random subsets were tried.", {"size": 8, "color": QUIET})])
        return
    names = []
    for row, entry in enumerate(inertness.sizes):
        for side, shift, colour in (("added", -0.17, ADDED), ("removed", 0.17, REMOVED)):
            values = np.array(getattr(entry, side).values, dtype=float)
            look: dict[str, Any] = {"s": 14, "alpha": 0.65, "linewidths": 0, "clip_on": False}
            label = {"added": "removed ones added back", "removed": "kept ones removed"}[side]
            axes.scatter(
                values, [row + shift] * len(values), color=colour, label=label if row == 0 else None, **look
            )
        if entry.bound is not None:
            axes.fill_betweenx([row - 0.4, row + 0.4], -entry.bound, entry.bound, color=EMPTY, zorder=-1)
        if entry.interval:
            axes.plot(entry.interval, [row - 0.34] * 2, color=INK, linewidth=1.6, solid_capstyle="butt")
        names.append(plural(entry.units, "unit"))
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel="change of the KL [nats per token]")
    axes.set_yticks(range(len(names)), names)
    panel_looks(axes)
    tested = any(entry.bound is not None for entry in inertness.sizes)
    if tested:
        axes.set_xlabel("change of the KL [nats per token]\ngrey: counts as none, bar: 90 % interval")
    axes.set_title(f"Random subsets of units, {inertness.draws} of each size", weight="bold")
    axes.legend(loc="upper right", handlelength=1, borderaxespad=0.1)


def layer_ticks(context: Context) -> list[int]:
    """Rows that are labelled, so that labels do not touch."""
    return list(index_ticks(len(context.layers), 32))


def layer_names(context: Context) -> list[str]:
    """Indices of the labelled layers."""
    return [str(context.layers[row].index) for row in layer_ticks(context)]
