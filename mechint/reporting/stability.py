"""What several seeds agree on, and what every kept unit is worth, in one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from mechint.masking.space import Kind as Part
from mechint.reporting.certainty import headline_of_seeds
from mechint.reporting.style import (
    ACCENT,
    INK,
    KEPT,
    KINDS,
    QUIET,
    Kind,
    figure_style,
    headline,
    index_ticks,
    new_figure,
    save,
    write,
    write_lines,
)
from mechint.reporting.wording import plural
from mechint.results.result import InertnessInfo, StabilityInfo
from mechint.results.run_files import RunFiles

HEADER, FOOTER, TALLEST, LOWEST, BARS, NECESSITY = 0.78, 1.5, 0.42, 0.12, 2.6, 4.0  # inches
ADDED, REMOVED = "#00806a", "#5f656c"
WIDE = 30  # a range of so many medians is drawn logarithmically
PARTS: dict[Kind, Part] = {"K": "k", "V": "v"}


class StabilityFigure:
    """stability.png: per layer how many channels how many seeds keep, and the necessity of each kept unit; below, the
    KL of all masks and of random variations. Drawn for runs of several seeds only.
    """

    filename: ClassVar[str] = "stability.png"

    def draw(self, run: RunFiles, dpi: int) -> list[Path]:
        """Draw the figure into the run's directory and return its path."""
        stability = run.result.stability
        if not stability or run.evidence is None:
            return []
        body = max(1.2, len(run.layers) * min(TALLEST, max(LOWEST, 6.0 / len(run.layers))))
        with figure_style():
            figure = new_figure(2 * BARS + NECESSITY + 0.6, HEADER + body + FOOTER + 1.4)
            grid = figure.add_gridspec(
                3, 3, width_ratios=[BARS, BARS, NECESSITY], height_ratios=[HEADER, body, FOOTER]
            )
            title = f"{run.model_name}: how sure the mask is"
            headline(figure, grid[0, :], title, headline_of_seeds(stability))
            counts = {kind: seed_counts(run, kind) for kind in KINDS}
            most = max(int(count[:, 1:].sum(1).max()) for count in counts.values())
            for column, kind in enumerate(KINDS):
                axes = figure.add_subplot(grid[1, column])
                draw_counts(axes, run, kind, counts[kind], most, labelled=column == 0)
            draw_necessity(figure.add_subplot(grid[1, 2]), run)
            draw_masks(figure.add_subplot(grid[2, :2]), stability)
            draw_subsets(figure.add_subplot(grid[2, 2]), stability.inertness)
            return [save(figure, run.directory / self.filename, dpi)]


def seed_counts(run: RunFiles, kind: Kind) -> NDArray[np.int64]:
    """[L, S + 1]: how many of the layer's channels exactly 0, 1, ..., S seeds keep."""
    assert run.evidence is not None
    assert run.result.stability is not None
    seeds = len(run.result.stability.seeds)
    frequencies = [run.evidence[layer.name, PARTS[kind]].frequency for layer in run.layers]
    chosen = [(frequency * seeds).round().long().flatten() for frequency in frequencies]
    return np.array([np.bincount(one.numpy(), minlength=seeds + 1) for one in chosen])


def draw_counts(
    axes: Axes, run: RunFiles, kind: Kind, counts: NDArray[np.int64], most: int, labelled: bool
) -> None:
    """One bar per layer: channels that all seeds keep, then those that fewer and fewer keep."""
    seeds = counts.shape[1] - 1
    left = np.zeros(len(counts))
    rows = np.arange(len(counts))
    for times in range(seeds, 0, -1):
        shade = KEPT[kind]((times - 1) / max(seeds - 1, 1))
        label = f"all {seeds} seeds" if times == seeds else plural(times, "seed")
        axes.barh(rows, counts[:, times], left=left, height=0.74, color=shade, label=label)
        left += counts[:, times]
    kept = [int(getattr(run.masks[layer.name], f"{PARTS[kind]}_mask").sum()) for layer in run.layers]
    axes.scatter(kept, rows, marker="|", s=60, color=INK, linewidths=1.4, zorder=3, label="in the consensus")
    axes.set(xlim=(0, 1.3 * most), ylim=(len(counts) - 0.4, -0.6), xlabel=f"{kind} channels")
    axes.set_title(f"{kind}: kept by how many seeds", color=ACCENT[kind], weight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_yticks(layer_ticks(run), layer_names(run) if labelled else [])
    axes.set_ylabel("layer" if labelled else "")
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 6:  # the ends tell the direction
        handles, labels = ([items[0], items[1], items[-1]] for items in (handles, labels))
    axes.legend(handles, labels, loc="lower right", handlelength=1, fontsize=7)


def draw_necessity(axes: Axes, run: RunFiles) -> None:
    """A dot per kept unit at the rise of the KL without it; hollow where that is not told from noise."""
    assert run.evidence is not None
    assert run.result.stability is not None
    tested = run.result.stability.necessity
    if not tested:
        write_lines(axes, [("Units were not removed one by one.", {"size": 8, "color": QUIET})])
        return
    everything: list[float] = []
    for row, layer in enumerate(run.layers):
        for kind, shift in zip(KINDS, (-0.19, 0.19), strict=True):
            rise, error = unit_values(run, layer.name, kind)
            clear = np.abs(rise) > 2 * np.nan_to_num(error)
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
    axes.set(ylim=(len(run.layers) - 0.4, -0.6), xlabel="rise of the KL without the unit [nats per token]")
    axes.set_yticks(layer_ticks(run), layer_names(run))
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.6)
    axes.set_title("Necessity of each kept unit (hollow: unclear)", weight="bold")


def unit_values(run: RunFiles, layer: str, kind: Kind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Necessity and its standard error of the tested units of one layer and kind, once for each unit."""
    assert run.evidence is not None
    part = run.evidence[layer, PARTS[kind]]
    rise, error, unit = (
        values.flatten().double().numpy() for values in (part.necessity, part.necessity_error, part.unit)
    )
    _, first = np.unique(unit, return_index=True)
    first = first[np.isfinite(rise[first])]
    return rise[first], error[first]


def draw_masks(axes: Axes, stability: StabilityInfo) -> None:
    """KL of every seed's own mask and of the consensus."""
    single, consensus = stability.single.kl, stability.consensus.kl
    axes.scatter(single, [0] * len(single), s=34, color=QUIET, alpha=0.75, linewidths=0, clip_on=False)
    axes.scatter([consensus], [1], s=46, color=INK, marker="D", clip_on=False)
    write(axes, f"{consensus:.3f}", (consensus, 1), (7, 0), va="center", size=8, weight="bold")
    low, high = min([*single, consensus]), max([*single, consensus])
    pad = max(0.15 * (high - low), 0.02 * high, 1e-3)
    axes.set(
        xlim=(low - pad, high + 2 * pad), ylim=(1.6, -0.6), xlabel="KL to the dense model [nats per token]"
    )
    axes.set_yticks([0, 1], ["each seed", "consensus"])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
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
        names.append(plural(entry.units, "unit"))
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel="change of the KL [nats per token]")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"Random subsets of units, {inertness.draws} of each size", weight="bold")
    axes.legend(loc="upper right", handlelength=1, borderaxespad=0.1)


def layer_ticks(run: RunFiles) -> list[int]:
    """Rows that are labelled, so that labels do not touch."""
    return list(index_ticks(len(run.layers), 32))


def layer_names(run: RunFiles) -> list[str]:
    """Indices of the labelled layers."""
    return [str(run.layers[row].index) for row in layer_ticks(run)]
