"""All channels of a model in one figure: how important each is, or at which sparsity of a nested run it drops out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mechint.reporting.context import KINDS, Cells, Context, Kind
from mechint.reporting.finding import headline_lines
from mechint.reporting.style import (
    ACCENT,
    EMPTY,
    INK,
    KEPT,
    LINE,
    POINTS,
    QUIET,
    REMOVED,
    cell_colours,
    colour_key,
    index_ticks,
    titled_figure,
    write,
    write_lines,
)
from mechint.reporting.wording import counted, percent

# RGBA [G, C, 4] of one layer's K or V; counts of its channels and their colours, the largest first, as bars over each
# other; what draws the key into a panel for colours and one for words.
Colours = Callable[[Cells, Kind], NDArray[np.float64]]
Levels = Callable[[Cells, Kind], list[tuple[int, Any]]]
Key = Callable[[Axes, Axes], None]

FOOTER, BARS = 0.68, 1.25  # inches
# Inches of a head's row; ROOM is the height that rows share before they reach the lowest.
TALLEST_ROW, LOWEST_ROW, ROOM = 0.2, 0.02, 9.0
WIDEST_CHANNEL, NARROWEST_PANEL, WIDEST_PANEL = 0.08, 2.8, 6.0  # inches


@dataclass(frozen=True)
class Blocks:
    """Where each layer's rows lie on the vertical axis, in head rows from the top."""

    spans: tuple[tuple[float, float], ...]
    row_height: float  # inches

    @classmethod
    def of(cls, context: Context) -> Blocks:
        """Stack the layers, G rows each, with a gap that grows with G."""
        spans, top = [], 0.0
        for layer in context.layers:
            heads = len(context.cells(layer, "K").kept)
            spans.append((top, top + heads))
            top += heads + max(0.45, 0.08 * heads)
        return cls(tuple(spans), min(TALLEST_ROW, max(LOWEST_ROW, ROOM / top)))

    @property
    def bottom(self) -> float:
        """The end of the last layer."""
        return self.spans[-1][1]

    def points(self, span: tuple[float, float]) -> float:
        """Printed height of a span."""
        return (span[1] - span[0]) * self.row_height * POINTS

    @property
    def label_every(self) -> int:
        """Label every how many layers, so that labels do not touch."""
        pitch = self.points((0.0, self.bottom)) / len(self.spans)
        return next((step for step in (1, 2, 5, 10) if step * pitch >= 8), 20)


class ImportanceOverview:
    """kv_channel_importance: every channel in the colour of its rank; beside each layer, how much of it is kept."""

    stem: ClassVar[str] = "kv_channel_importance"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture."""
        yield (
            self.stem,
            channel_map(
                context,
                f"{context.run.model_name}: which K and V {context.noun}s matter",
                headline_lines(context),
                cell_colours,
                lambda cells, kind: [(int(cells.kept.sum()), ACCENT[kind])],
                lambda bars, words: colour_key(
                    bars, words, [*reading_notes(context), f"Importance: {context.importance}."]
                ),
            ),
        )


class SurvivalMap:
    """survival_map: for nested runs, at which target sparsity every channel drops out; the darker, the later."""

    stem: ClassVar[str] = "survival_map"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture, for nested runs of several sparsities."""
        if not context.is_ladder:
            return
        points = context.result.nested or []
        grey, steps = np.array(REMOVED(0.5)), np.linspace(0, 1, len(points))
        shades = {kind: np.stack([grey, *KEPT[kind](steps)]) for kind in KINDS}  # [targets + 1, 4]

        def draw_key(bars: Axes, words: Axes) -> None:
            shown = np.stack([shades[kind] for kind in KINDS])
            bars.imshow(shown, extent=(0, len(points) + 1, 2, 0), aspect="auto", interpolation="nearest")
            bars.set(yticks=[0.5, 1.5], yticklabels=KINDS, xticks=range(1, len(points) + 1))
            bars.set_xticklabels([percent(point.achieved, 0).replace(" ", "") for point in points])
            bars.set_xlabel("left of a mark: gone at that sparsity")
            bars.tick_params(axis="y", length=0, labelcolor=INK)
            bars.spines[:].set_visible(False)
            still = f"Darkest: still kept at {percent(points[-1].achieved, 0)}. Grey: gone first."
            notes = [*reading_notes(context)[:2], still]
            write_lines(words, [(note, {"size": 8, "color": QUIET}) for note in notes], down=1)

        kept = ", ".join(f"{point.kept:,} at {percent(point.achieved, 1)}" for point in points)
        figure = channel_map(
            context,
            f"{context.run.model_name}: at which sparsity each {context.noun} drops out",
            [f"Units kept, of {context.result.sparsity.total:,}: {kept}"],
            lambda cells, kind: shades[kind][cells.targets],
            lambda cells, kind: [
                (int((cells.targets >= times).sum()), shades[kind][times])
                for times in range(1, len(points) + 1)
            ],
            draw_key,
        )
        yield self.stem, figure


def channel_map(
    context: Context, title: str, lines: list[str], colours: Colours, levels: Levels, draw_key: Key
) -> Figure:
    """K left, V right; a block per layer, a row per KV head, a column per channel or direction.

    Beside each block bars say which part of the layer is kept.
    """
    blocks = Blocks.of(context)
    widths = [columns_width(context, "K"), BARS, columns_width(context, "V"), BARS]
    height = max(0.4, blocks.row_height * blocks.bottom)
    figure, body = titled_figure(title, lines, sum(widths) + 0.9, height + FOOTER + 0.95)
    grid = body.subgridspec(2, 4, width_ratios=widths, height_ratios=[height, FOOTER])
    for column, kind in enumerate(KINDS):
        panel = figure.add_subplot(grid[0, 2 * column])
        draw_channels(panel, context, kind, blocks, colours, labelled=column == 0)
        draw_bars(figure.add_subplot(grid[0, 2 * column + 1]), context, kind, blocks, levels)
    draw_key(figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1:]))
    return figure


def draw_channels(
    axes: Axes, context: Context, kind: Kind, blocks: Blocks, colours: Colours, labelled: bool
) -> None:
    """Every layer's channels [G, C] as coloured cells, layer 0 at the top."""
    columns = most_channels(context, kind)
    points_wide = columns_width(context, kind) * POINTS / columns
    for layer, (top, bottom) in zip(context.layers, blocks.spans, strict=True):
        cells = context.cells(layer, kind)
        heads, width = cells.kept.shape
        left, right = -0.5, width - 0.5
        axes.imshow(
            colours(cells, kind),
            extent=(left, right, bottom, top),
            aspect="auto",
            interpolation="nearest",
        )
        if blocks.row_height * POINTS >= 4:
            axes.hlines([top + h for h in range(1, heads)], left, right, color="white", linewidth=0.8)
        if points_wide >= 4:
            axes.vlines([c + 0.5 for c in range(width - 1)], top, bottom, color="white", linewidth=0.4)
        axes.add_patch(Rectangle((left, top), width, bottom - top, fill=False, edgecolor=LINE, linewidth=0.4))
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(blocks.bottom, 0))
    axes.set_title(f"{kind}: {counted(*context.count(kind))} kept", color=ACCENT[kind], weight="bold")
    axes.set_xlabel(axis_name(context, kind))
    axes.set_xticks(index_ticks(columns, 8))
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    if labelled:
        label_rows(axes, context, blocks)


def draw_bars(axes: Axes, context: Context, kind: Kind, blocks: Blocks, levels: Levels) -> None:
    """One bar per layer, on a pale bar of all its channels: which part is kept."""
    room = min(blocks.points(span) for span in blocks.spans)
    for layer, (top, bottom) in zip(context.layers, blocks.spans, strict=True):
        cells = context.cells(layer, kind)
        middle, high, total = (top + bottom) / 2, 0.8 * (bottom - top), cells.kept.size
        axes.barh(middle, 100, height=high, color=EMPTY)
        for count, colour in levels(cells, kind):
            axes.barh(middle, 100 * count / total, height=high, color=colour)
        if room >= 5.5:
            kept = f"{int(cells.kept.sum()):,}/{total:,}"
            write(axes, kept, (100, middle), (3, 0), va="center", size=min(6.5, room))
    axes.set(xlim=(0, 150), ylim=(blocks.bottom, 0), yticks=[], xticks=[0, 50, 100])
    axes.set_title(f"{kind} kept of all", color=ACCENT[kind])
    axes.set_xlabel("% of the layer")
    axes.spines[:].set_visible(False)


def columns_width(context: Context, kind: Kind) -> float:
    """Printed width in inches of the widest layer's channels."""
    return min(WIDEST_PANEL, max(NARROWEST_PANEL, WIDEST_CHANNEL * most_channels(context, kind)))


def most_channels(context: Context, kind: Kind) -> int:
    """C of the layer with the widest heads."""
    return max(context.cells(layer, kind).kept.shape[1] for layer in context.layers)


def axis_name(context: Context, kind: Kind) -> str:
    """What a column is."""
    return (
        f"{kind} direction of the head, by its share" if context.in_basis else f"{kind} channel of the head"
    )


def reading_notes(context: Context) -> list[str]:
    """How rows, columns and colours are meant."""
    heads = sorted({len(context.cells(layer, "K").kept) for layer in context.layers})
    count = f"{heads[0]}" if len(heads) == 1 else f"{heads[0]} to {heads[-1]}"
    ordered = ", those that are worth most to the basis at the left" if context.in_basis else ""
    return [
        f"Row: one of the layer's {count} KV heads, head 0 at the top."
        if heads[-1] > 1
        else "Row: the layer's only KV head.",
        f"Column: one {context.noun} of that head{ordered}.",
        "Blue (K) or orange (V): kept. Grey: removed. Darker: higher rank.",
    ]


def label_rows(axes: Axes, context: Context, blocks: Blocks) -> None:
    """Name the layers by index at the middle of their blocks and, where there is room, every head."""
    chosen = range(0, len(blocks.spans), blocks.label_every)
    axes.set_yticks(
        [sum(blocks.spans[i]) / 2 for i in chosen], [str(context.layers[i].index) for i in chosen]
    )
    room = blocks.row_height * POINTS >= 7.5 and blocks.bottom > len(blocks.spans)
    if room:
        rows = [
            (top + head + 0.5, f"h{head}")
            for top, bottom in blocks.spans
            for head in range(round(bottom - top))
        ]
        axes.set_yticks([place for place, _ in rows], [name for _, name in rows], minor=True)
        axes.tick_params(axis="y", which="minor", length=0, labelsize=5.5, labelcolor=QUIET, pad=2)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8, pad=18 if room else 3)
    axes.set_ylabel("layer")
