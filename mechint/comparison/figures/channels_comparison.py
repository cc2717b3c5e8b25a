"""How many channels each variant keeps per layer, and whether they are the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mechint.comparison.comparison import Comparison, Kind, Variant
from mechint.comparison.figures.looks import Look, variant_looks
from mechint.comparison.figures.page import PALE, SHADE, comparison_page, parts, several_runs, shortened
from mechint.metrics.overlap import Overlap
from mechint.metrics.spread import Spread
from mechint.reporting.style import ACCENT, INK, KINDS, QUIET, figure_style, index_ticks, save, write

WIDTH, PANEL, ROW = 8.4, 1.15, 0.4  # inches
SIZE, SEEDS = 7.0, "#8d959e"
SIDES: tuple[tuple[Kind, str, int], ...] = (("k", ACCENT["K"], 1), ("v", ACCENT["V"], -1))


class ChannelsComparison:
    """channels_comparison.png: kept K channels upwards, kept V downwards, per layer, one panel per variant.

    Below: how far each variant keeps the same channels as the baseline, beside chance and the highest possible.
    """

    filename: ClassVar[str] = "channels_comparison.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        heights = [PANEL * len(comparison.variants) + 0.55, ROW * len(comparison.differences) + 1.1]
        title = "How many channels are kept, and are they the same ones?"
        totals = {variant.name: totals_of(variant) for variant in comparison.variants}
        with figure_style():
            figure, body = comparison_page(comparison, (WIDTH, sum(heights)), title, (), totals)
            panels, below = parts(body, heights)
            draw_counts(panels, comparison)
            draw_overlaps(below, comparison)
            return [save(figure, directory / self.filename, dpi)]


def totals_of(variant: Variant) -> str:
    """'keeps K 74 of 160, V 86 of 160', means over runs."""
    sums = variant.layers.groupby(level=["kind", "run"])[["kept", "total"]].sum().groupby(level="kind").mean()
    words = (f"{kind.upper()} {sums.kept[kind]:,.4g} of {sums.total[kind]:,.0f}" for kind, *_ in SIDES)
    return f"keeps {', '.join(words)}"


def draw_counts(place: SubFigure, comparison: Comparison) -> None:
    """One panel per variant, each over its own layers, on one vertical scale: all channels, or at high sparsity
    somewhat more than any layer keeps, so that bars can be told apart.
    """
    tables = [variant.layers for variant in comparison.variants]
    ends, whole = {}, True
    for kind, *_ in SIDES:
        total, most = (
            max(table[column].xs(kind, level="kind").max() for table in tables)
            for column in ("total", "kept")
        )
        ends[kind] = (total, min(total, 1.25 * max(1, most)))
        whole = whole and most > 0.6 * total
    looks, grid = variant_looks(comparison), place.add_gridspec(len(comparison.variants), 1)
    same = len({tuple(variant.indices) for variant in comparison.variants}) == 1
    for row, variant in enumerate(comparison.variants):
        axes = place.add_subplot(grid[row])
        for kind, colour, sign in SIDES:
            spreads = variant.per_layer("kept", kind)
            if whole:
                totals = sign * variant.per_layer("total", kind)["mean"]
                axes.bar(spreads.index, totals, width=0.8, color=SHADE)
            axes.bar(spreads.index, sign * spreads["mean"], width=0.8, color=colour)
            if len(variant.runs) > 1:
                low, high = sign * spreads["min"], sign * spreads["max"]
                axes.vlines(spreads.index, low, high, color=INK, linewidth=0.8)
        axes.axhline(0, color=QUIET, linewidth=0.6)
        limits = {kind: both[0 if whole else 1] for kind, both in ends.items()}
        axes.set(
            xlim=(min(variant.indices) - 0.6, max(variant.indices) + 0.6), ylim=(-limits["v"], limits["k"])
        )
        axes.locator_params(axis="y", nbins=4, integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.spines["bottom"].set_visible(False)
        name = shortened(variant.name, 8.5, 400, True)
        axes.set_title(name, color=looks[variant.name].colour, weight="bold", size=8.5)
        axes.set_xticks([variant.indices[position] for position in index_ticks(len(variant.indices), 20)])
        axes.tick_params(labelbottom=row == len(comparison.variants) - 1 or not same)
    axes.set_xlabel("layer")
    place.supylabel("kept channels per layer", size=8)
    handles: list[Any] = [Patch(color=ACCENT[kind], label=f"kept {kind}") for kind in KINDS]
    handles += [Patch(color=SHADE, label="all channels")] if whole else []
    if several_runs(comparison):
        handles.append(Line2D([], [], color=INK, linewidth=0.8, label="from the lowest to the highest run"))
    place.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=6.5)


def draw_overlaps(place: SubFigure, comparison: Comparison) -> None:
    """One row per variant: intersection over union with the baseline, chance, and seeds among themselves."""
    looks, differences = variant_looks(comparison), list(comparison.differences.values())
    axes = place.add_subplot()
    highest = [0.0]
    for row, difference in enumerate(differences):
        axes.axhline(row, color=PALE, linewidth=0.8, zorder=0)
        found = difference.overlap
        if found is None or found.iou is None:
            words = shortened(f"none: {difference.no_overlap or 'neither mask keeps any channel'}", SIZE, 440)
            write(axes, words, (0, row), (4, 0), va="center", size=SIZE, color=QUIET)
            continue
        draw_overlap(axes, row, found, found.iou, looks[difference.variant])
        shown = (found.iou, found.k_iou, found.v_iou, found.chance, found.baseline_iou, found.variant_iou)
        highest += [spread.high for spread in shown if spread]
    end = next((end for end in (0.1, 0.25, 0.5) if max(highest) < 0.9 * end), 1.0) if any(highest) else 1.0
    axes.set(xlim=(0, end), ylim=(len(differences) - 0.5, -0.5))
    axes.set_yticks(range(len(differences)), [shortened(d.variant, SIZE, 100) for d in differences])
    for tick, difference in zip(axes.get_yticklabels(), differences, strict=True):
        tick.set(color=looks[difference.variant].colour, size=SIZE)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    title = shortened(f"The same channels as {comparison.baseline}?", 8.5, 400, True)
    axes.set_title(title, weight="bold", size=8.5)
    axes.set_xlabel("intersection over union of kept channels (1: the same channels; 0: none in common)")
    if any(difference.overlap for difference in differences):
        mark: dict[str, Any] = {"linestyle": "", "marker": "s", "markersize": 5}
        handles = [
            Line2D([], [], color=QUIET, label="K and V", **mark),
            *(Line2D([], [], color=ACCENT[kind], label=f"{kind} alone", **mark) for kind in KINDS),
            Line2D([], [], color=INK, linewidth=1.1, label="matched random masks"),
            Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (1, 1)), label="highest possible"),
            Line2D([], [], color=SEEDS, linewidth=3, label="between seeds (above: baseline, below: variant)"),
        ]
        place.legend(
            handles=handles, loc="outside lower left", ncols=len(handles), fontsize=6.3, columnspacing=1
        )


def draw_overlap(axes: Axes, row: int, overlap: Overlap, iou: Spread, look: Look) -> None:
    """One variant: K and V together as its mark, alone as dots, chance and highest as lines, seeds as bars."""
    for level, dash in ((overlap.chance, "-"), (overlap.highest, ":")):
        if level:
            axes.plot([level.mean] * 2, [row - 0.32, row + 0.32], color=INK, linewidth=1.1, linestyle=dash)
    for spread, place in ((overlap.baseline_iou, row - 0.27), (overlap.variant_iou, row + 0.27)):
        if spread:
            ends: dict[str, Any] = {"marker": "|", "markersize": 4, "markeredgewidth": 1.5}
            axes.plot([spread.low, spread.high], [place] * 2, color=SEEDS, linewidth=3, zorder=1, **ends)
    for spread, kind in ((overlap.k_iou, KINDS[0]), (overlap.v_iou, KINDS[1])):
        if spread:
            axes.plot([spread.mean], [row], marker="s", markersize=3.5, linestyle="", color=ACCENT[kind])
    axes.plot([iou.low, iou.high], [row, row], color=look.colour, linewidth=1.4, alpha=0.6)
    mark: dict[str, Any] = {"marker": look.marker, "markersize": 6.5, "markeredgecolor": "white"}
    axes.plot([iou.mean], [row], color=look.colour, linestyle="", markeredgewidth=0.6, zorder=3, **mark)
    words = f"{iou.mean:.2f}"
    if overlap.chance and overlap.highest and overlap.contained:
        words += f"  chance {overlap.chance.mean:.2f}, highest {overlap.highest.mean:.2f}"
        words += f"\n{overlap.contained.mean:.2f} of the smaller contained"
    axes.annotate(
        words, (1, row), xytext=(3, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="center", size=6.3, annotation_clip=False,
    )  # fmt: skip
