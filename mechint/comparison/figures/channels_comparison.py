"""How many channels each variant keeps per layer, and whether they are the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from mechint.comparison.comparison import Comparison, Variant, VariantLayer
from mechint.comparison.figures.facts import several_runs
from mechint.comparison.figures.lettering import shortened
from mechint.comparison.figures.looks import variant_looks
from mechint.comparison.figures.mask_overlap import draw_overlaps, overlap_height
from mechint.comparison.figures.sheet import comparison_header, new_sheet, stacked_parts
from mechint.metrics.spread import Spread
from mechint.reporting.style import ACCENT, INK, KINDS, QUIET, Kind, figure_style, index_ticks, save, write

WIDTH, PANEL = 8.4, 1.15  # inches
ALL = "#eceef0"


class ChannelsComparison:
    """channels_comparison.png: kept K channels upwards, kept V downwards, per layer, one panel per variant.

    Below: how far each variant keeps the same channels as the baseline, beside what chance would give.
    """

    filename: ClassVar[str] = "channels_comparison.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        heights = [PANEL * len(comparison.variants) + 0.35, overlap_height(comparison)]
        limits = Limits.of(comparison)
        with figure_style():
            title = "How many channels are kept, and are they the same ones?"
            header = comparison_header(
                comparison, title, WIDTH, notes(comparison, limits), totals(comparison)
            )
            figure, body = new_sheet(header, sum(heights))
            panels, below = stacked_parts(body, heights)
            draw_counts(panels, comparison, limits)
            draw_overlaps(below, comparison)
            return [save(figure, directory / self.filename, dpi)]


@dataclass(frozen=True)
class Limits:
    """How far the vertical axis reaches, in channels per layer. whole: it takes in all channels of every layer."""

    k: float
    v: float
    whole: bool

    @classmethod
    def of(cls, comparison: Comparison) -> Limits:
        """All channels; at high sparsity only somewhat more than any layer keeps, so that bars can be told apart."""
        layers = [layer for variant in comparison.variants for layer in variant.layers]
        whole = {kind: max(total(layer, kind) for layer in layers) for kind in KINDS}
        most = {kind: max(kept(layer, kind).high for layer in layers) for kind in KINDS}
        room = 1.1 * max(1, *most.values())
        if all(most[kind] > 0.6 * whole[kind] or room >= whole[kind] for kind in KINDS):
            return cls(whole["K"], whole["V"], True)
        return cls(min(whole["K"], room), min(whole["V"], room), False)


def notes(comparison: Comparison, limits: Limits) -> list[str]:
    """What the bars are."""
    pale = "; pale: all channels" if limits.whole else "; the axes end before the number of all channels"
    lines = "  Thin lines: from the lowest to the highest run." if several_runs(comparison) else ""
    return [f"Bars: kept channels of a layer, all its KV heads together{pale}.{lines}"]


def totals(comparison: Comparison) -> dict[str, str]:
    """'keeps K 74 of 160, V 86 of 160' for each variant."""

    def words(variant: Variant, kind: Kind) -> str:
        whole = sum(total(layer, kind) for layer in variant.layers)
        mean = sum(kept(layer, kind).mean for layer in variant.layers)
        return f"{kind} {mean:,.{0 if abs(mean - round(mean)) < 1e-9 else 1}f} of {whole:,}"

    return {
        variant.name: f"keeps {', '.join(words(variant, kind) for kind in KINDS)}"
        for variant in comparison.variants
    }


def draw_counts(place: SubFigure, comparison: Comparison, limits: Limits) -> None:
    """One panel per variant, each over its own layers, on one vertical scale."""
    looks = variant_looks(comparison)
    grid = place.add_gridspec(len(comparison.variants), 1)
    same = len({tuple(layer.index for layer in variant.layers) for variant in comparison.variants}) == 1
    for row, variant in enumerate(comparison.variants):
        axes = place.add_subplot(grid[row])
        draw_bars(axes, variant, limits)
        name = shortened(variant.name, 8.5, 400, True)
        axes.set_title(name, color=looks[variant.name].colour, weight="bold", size=8.5)
        indices = [layer.index for layer in variant.layers]
        axes.set_xticks([indices[position] for position in index_ticks(len(indices), 20)])
        axes.tick_params(labelbottom=row == len(comparison.variants) - 1 or not same)
    place.supxlabel("layer", size=8, color=QUIET)
    place.supylabel("kept channels per layer", size=8)


def draw_bars(axes: Axes, variant: Variant, limits: Limits) -> None:
    """K bars above and V bars below the axis, coloured for kept on pale for all."""
    indices = [layer.index for layer in variant.layers]
    for kind, sign in zip(KINDS, (1, -1), strict=True):
        if limits.whole:
            axes.bar(indices, [sign * total(layer, kind) for layer in variant.layers], width=0.8, color=ALL)
        spreads = [kept(layer, kind) for layer in variant.layers]
        axes.bar(indices, [sign * spread.mean for spread in spreads], width=0.8, color=ACCENT[kind])
        if any(spread.n > 1 for spread in spreads):
            low, high = [sign * spread.low for spread in spreads], [sign * spread.high for spread in spreads]
            axes.vlines(indices, low, high, color=INK, linewidth=0.8)
        look: dict[str, Any] = {
            "size": 8,
            "weight": "bold",
            "color": ACCENT[kind],
            "va": "center",
            "annotation_clip": False,
        }
        write(axes, kind, (1, 0.5 + 0.25 * sign), (4, 0), inside=True, **look)
    axes.axhline(0, color=QUIET, linewidth=0.6)
    axes.set(xlim=(min(indices) - 0.6, max(indices) + 0.6), ylim=(-limits.v, limits.k))
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.spines["bottom"].set_visible(False)


def total(layer: VariantLayer, kind: Kind) -> int:
    """Channels of one kind in a layer."""
    return layer.k_total if kind == "K" else layer.v_total


def kept(layer: VariantLayer, kind: Kind) -> Spread:
    """Kept channels of one kind in a layer, over runs."""
    return layer.k_kept if kind == "K" else layer.v_kept
