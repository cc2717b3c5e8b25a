"""Each variant's layers beside the baseline's: one row per variant, one column for K and V, K, V."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mechint.comparison.comparison import KINDS, Comparison, Kind, Variant
from mechint.comparison.figures.looks import Look, variant_looks
from mechint.comparison.figures.page import PALE, comparison_page, several_runs, shortened
from mechint.reporting.style import ACCENT, INK, QUIET, figure_style, index_ticks, save, write

WIDTH = 8.4  # inches
DOTTED_UP_TO = 16  # layers; above that markers run into each other in a narrow panel
TITLES: dict[Kind, tuple[str, str]] = {
    "kv": ("K and V together", INK),
    "k": ("K channels", ACCENT["K"]),
    "v": ("V channels", ACCENT["V"]),
}


class Profiles:
    """A column of the table of layers, each variant in its colour beside the dark baseline."""

    filename: ClassVar[str]
    title: ClassVar[str]
    note: ClassVar[str] = ""
    column: ClassVar[str]
    label: ClassVar[str]

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        band = "Line: mean over runs; band: from the lowest to the highest run."
        lines = [self.note, band if several_runs(comparison) else ""]
        row = 2.3 if len(comparison.others) == 1 else 1.35  # a single comparison may be larger
        size = (WIDTH, row * len(comparison.others) + 0.3)
        with figure_style():
            lines = list(filter(None, lines))
            figure, body = comparison_page(comparison, size, self.title, lines, self.about(comparison))
            self.scale(self._panels(body, comparison))
            return [save(figure, directory / self.filename, dpi)]

    def about(self, comparison: Comparison) -> dict[str, str]:
        """What stands in the key beside each variant."""
        return {}

    def scale(self, axes: Axes) -> None:
        """Set the vertical axis, which all panels share."""

    def _panels(self, place: SubFigure, comparison: Comparison) -> Axes:
        """Draw all panels, on shared axes; returns the first."""
        looks, baseline = variant_looks(comparison), comparison[comparison.baseline]
        by_depth = len({tuple(variant.indices) for variant in comparison.variants}) > 1
        grid = place.add_gridspec(len(comparison.others), len(KINDS))
        first: Axes | None = None
        for row, variant in enumerate(comparison.others):
            for column, (kind, (title, colour)) in enumerate(TITLES.items()):
                axes = place.add_subplot(grid[row, column], sharex=first, sharey=first)
                first = first or axes
                for shown in (baseline, variant):
                    self._line(axes, shown, kind, looks[shown.name], by_depth)
                axes.set_title(f"\n{title}", color=colour, size=8)  # below the variant's name
                axes.grid(axis="y", color=PALE, linewidth=0.6)
                axes.set_axisbelow(True)
                axes.tick_params(labelbottom=row == len(comparison.others) - 1, labelleft=column == 0)
                if column == 0:
                    axes.set_ylabel(self.label)
                    name, look = shortened(variant.name, 8.5, 300, True), looks[variant.name]
                    style = {"size": 8.5, "weight": "bold", "color": look.colour}
                    words = write(axes, name, (0, 1), (0, 17), inside=True, **style)
                    words.set_in_layout(False)  # a long name must not widen the column
        assert first is not None, "a comparison has two variants or more"
        if by_depth:
            first.set(xlim=(0, 1), xticks=[0, 1 / 3, 2 / 3, 1], xticklabels=["0", "1/3", "2/3", "1"])
        else:
            indices = baseline.indices
            room = 0.02 * (max(indices) - min(indices)) + 0.2
            first.set_xlim(min(indices) - room, max(indices) + room)
            first.set_xticks([indices[position] for position in index_ticks(len(indices), 10)])
        label = "relative depth of the layer (0: input, 1: output)" if by_depth else "layer"
        place.supxlabel(label, size=8, color=QUIET)
        return first

    def _line(self, axes: Axes, variant: Variant, kind: Kind, look: Look, by_depth: bool) -> None:
        places = variant.depths.tolist() if by_depth else variant.indices
        spreads = variant.per_layer(self.column, kind)
        if len(variant.runs) > 1:
            axes.fill_between(
                places, spreads["min"], spreads["max"], color=look.colour, alpha=0.18, linewidth=0
            )
        marker = look.marker if len(places) <= DOTTED_UP_TO else ""
        style: dict[str, Any] = {"markersize": 4.2, "markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot(
            places, spreads["mean"], color=look.colour, linewidth=1.3, marker=marker, clip_on=False, **style
        )


class SparsityComparison(Profiles):
    """sparsity_comparison.png: fraction of channels removed per layer, each variant beside the baseline."""

    filename = "sparsity_comparison.png"
    title = "Where channels are removed: sparsity per layer"
    column, label = "sparsity", "removed"

    def about(self, comparison: Comparison) -> dict[str, str]:
        """What share of its K and of its V channels each variant removes."""
        return {
            v.name: ", ".join(
                f"{'removes ' * (kind == 'k')}{100 * v.sparsity(kind).mean:.1f} % of {kind.upper()}"
                for kind in KINDS[1:]
            )
            for v in comparison.variants
        }

    def scale(self, axes: Axes) -> None:
        """Up to 100 %, from the highest of a few round numbers that leaves every value in sight."""
        lowest = axes.get_ylim()[0]
        bottom = max(start for start in (0.0, 0.5, 0.8, 0.9) if start == 0 or start <= lowest)
        room = 0.02 * (1 - bottom)
        axes.set_ylim(bottom - room, 1 + room)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))


class ImportanceComparison(Profiles):
    """importance_comparison.png: mean rank of a layer's channels, each variant beside the baseline."""

    filename = "importance_comparison.png"
    title = "Which layers matter: mean rank of a layer's channels"
    note = "Rank: where a channel's importance stands among all channels of its run (0: least, 1: most important)."
    column, label = "rank", "mean rank"

    def scale(self, axes: Axes) -> None:
        """Around 1/2, the rank of an average channel."""
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.4, low), max(0.6, high))
        for panel in axes.figure.axes:
            panel.axhline(0.5, color=QUIET, linewidth=0.6, linestyle=(0, (3, 2)), zorder=0)
