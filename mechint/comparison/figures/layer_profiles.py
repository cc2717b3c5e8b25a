"""Each variant's layers beside the baseline's: one row per variant, one column for K and V, K, V."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from mechint.comparison.comparison import Comparison, Variant, VariantLayer
from mechint.comparison.figures.lettering import shortened
from mechint.comparison.figures.looks import Look, variant_looks
from mechint.metrics.spread import Spread
from mechint.reporting.style import INK, QUIET, index_ticks, write

WIDTH = 8.4  # inches
GRID = "#e6e8eb"
DOTTED_UP_TO = 16  # layers; above that markers run into each other in a narrow panel


@dataclass(frozen=True)
class Profile:
    """One column. value: what is shown of a layer. colour: of the title, which names K or V."""

    title: str
    value: Callable[[VariantLayer], Spread]
    colour: str = INK


def row_height(comparison: Comparison) -> float:
    """Inches that a row of panels takes; a single comparison may be larger."""
    return 2.3 if len(comparison.differences) == 1 else 1.35


def body_height(comparison: Comparison) -> float:
    """Inches that all rows take, with the title of the axis."""
    return row_height(comparison) * len(comparison.differences) + 0.3


def draw_profiles(
    place: SubFigure, comparison: Comparison, profiles: Sequence[Profile], label: str
) -> list[Axes]:
    """Panels on shared axes, the variant in its colour over the baseline in dark; returns the panels."""
    looks = variant_looks(comparison)
    baseline = comparison[comparison.baseline]
    others = [variant for variant in comparison.variants if variant.name != comparison.baseline]
    grid = place.add_gridspec(len(others), len(profiles))
    panels: list[Axes] = []
    for row, variant in enumerate(others):
        for column, profile in enumerate(profiles):
            first = panels[0] if panels else None
            axes = place.add_subplot(grid[row, column], sharex=first, sharey=first)
            panels.append(axes)
            for shown in (baseline, variant):
                draw_profile(axes, shown, profile, looks[shown.name], by_depth(comparison))
            axes.set_title(f"\n{profile.title}", color=profile.colour, size=8)  # below the variant's name
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(labelbottom=row == len(others) - 1, labelleft=column == 0)
            if column == 0:
                axes.set_ylabel(label)
                name_row(axes, variant, looks[variant.name])
    layer_axis(panels[0], comparison)
    title = "relative depth of the layer (0: input, 1: output)" if by_depth(comparison) else "layer"
    place.supxlabel(title, size=8, color=QUIET)
    return panels


def name_row(axes: Axes, variant: Variant, look: Look) -> None:
    """Write the variant's name above the titles of its row."""
    name = shortened(variant.name, 8.5, 300, True)
    line = write(axes, name, (0, 1), (0, 17), inside=True, size=8.5, weight="bold", color=look.colour)
    line.set_in_layout(False)  # a long name must not widen the column


def draw_profile(axes: Axes, variant: Variant, profile: Profile, look: Look, relative: bool) -> None:
    """A line through the means of the layers; a band from the smallest to the largest value over runs."""
    places = [layer.depth if relative else layer.index for layer in variant.layers]
    spreads = [profile.value(layer) for layer in variant.layers]
    if any(spread.n > 1 for spread in spreads):
        low, high = [spread.low for spread in spreads], [spread.high for spread in spreads]
        axes.fill_between(places, low, high, color=look.colour, alpha=0.18, linewidth=0)
    axes.plot(
        places,
        [spread.mean for spread in spreads],
        color=look.colour,
        linewidth=1.3,
        marker=look.marker if len(places) <= DOTTED_UP_TO else "",
        markersize=4.2,
        markeredgecolor="white",
        markeredgewidth=0.5,
        clip_on=False,
    )


def by_depth(comparison: Comparison) -> bool:
    """Whether layers are placed by relative depth: the variants have different layers."""
    return len({tuple(layer.index for layer in variant.layers) for variant in comparison.variants}) > 1


def layer_axis(axes: Axes, comparison: Comparison) -> None:
    """The shared horizontal axis: layer numbers, or relative depth where the variants' layers differ."""
    if by_depth(comparison):
        axes.set(xlim=(0, 1), xticks=[0, 1 / 3, 2 / 3, 1], xticklabels=["0", "1/3", "2/3", "1"])
        return
    indices = [layer.index for layer in comparison.variants[0].layers]
    room = 0.02 * (max(indices) - min(indices)) + 0.2
    axes.set_xlim(min(indices) - room, max(indices) + room)
    axes.set_xticks([indices[position] for position in index_ticks(len(indices), 10)])
