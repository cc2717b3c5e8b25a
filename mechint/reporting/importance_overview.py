"""All channels of a model in one figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mechint.reporting.finding import headline_lines
from mechint.reporting.style import (
    ACCENT,
    INK,
    KINDS,
    LINE,
    QUIET,
    Kind,
    channel_colours,
    channels,
    colour_key,
    figure_style,
    headline,
    index_ticks,
    new_figure,
    save,
    write,
)
from mechint.results.run_files import RunFiles

POINTS = 72  # per inch
HEADER, FOOTER, BARS = 0.72, 0.62, 1.0  # inches
TALLEST_ROW, LOWEST_ROW, ROOM = (
    0.2,
    0.02,
    9.0,
)  # inches; ROOM is the height that rows share before they reach the lowest
WIDEST_CHANNEL, NARROWEST_PANEL, WIDEST_PANEL = 0.08, 2.8, 6.0  # inches


class ImportanceOverview:
    """kv_channel_importance.png: K left, V right; a block per layer, a row per KV head, a column per channel.

    Beside each block a bar says how many channels the layer keeps.
    """

    filename: ClassVar[str] = "kv_channel_importance.png"

    def draw(self, run: RunFiles, dpi: int) -> list[Path]:
        """Draw the figure into the run's directory and return its path."""
        blocks = Blocks.of(run)
        widths = [columns_width(run, "K"), BARS, columns_width(run, "V"), BARS]
        height = max(0.4, blocks.row_height * blocks.bottom)
        with figure_style():
            figure = new_figure(sum(widths) + 0.9, height + HEADER + FOOTER + 0.95)
            grid = figure.add_gridspec(3, 4, width_ratios=widths, height_ratios=[HEADER, height, FOOTER])
            headline(
                figure, grid[0, :], f"{run.model_name}: which K and V channels matter", headline_lines(run)
            )
            most = max(int(channels(mask, kind)[0].sum()) for mask in run.masks.values() for kind in KINDS)
            for column, kind in enumerate(KINDS):
                panel = figure.add_subplot(grid[1, 2 * column])
                draw_channels(panel, run, kind, blocks, labelled=column == 0)
                draw_counts(figure.add_subplot(grid[1, 2 * column + 1]), run, kind, blocks, most)
            colour_key(figure.add_subplot(grid[2, 0]), figure.add_subplot(grid[2, 1:]), reading_notes(run))
            return [save(figure, run.directory / self.filename, dpi)]


@dataclass(frozen=True)
class Blocks:
    """Where each layer's rows lie on the vertical axis, in head rows from the top."""

    spans: tuple[tuple[float, float], ...]
    row_height: float  # inches

    @classmethod
    def of(cls, run: RunFiles) -> Blocks:
        """Stack the layers, G rows each, with a gap that grows with G."""
        spans, top = [], 0.0
        for mask in run.masks.values():
            heads = len(mask.k_mask)
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


def columns_width(run: RunFiles, kind: Kind) -> float:
    """Printed width in inches of the widest layer's channels."""
    return min(WIDEST_PANEL, max(NARROWEST_PANEL, WIDEST_CHANNEL * most_channels(run, kind)))


def most_channels(run: RunFiles, kind: Kind) -> int:
    """C of the layer with the widest heads."""
    return max(channels(mask, kind)[0].shape[1] for mask in run.masks.values())


def reading_notes(run: RunFiles) -> list[str]:
    """How rows, columns and colours are meant."""
    heads = sorted({len(mask.k_mask) for mask in run.masks.values()})
    count = f"{heads[0]}" if len(heads) == 1 else f"{heads[0]} to {heads[-1]}"
    return [
        f"Row: one of the layer's {count} KV heads, head 0 at the top."
        if heads[-1] > 1
        else "Row: the layer's only KV head.",
        "Column: one channel of that head.",
        "Blue or orange: kept. Grey: removed. Darker: more important.",
    ]


def draw_channels(axes: Axes, run: RunFiles, kind: Kind, blocks: Blocks, labelled: bool) -> None:
    """Every layer's channels [G, C] as coloured cells, layer 0 at the top."""
    columns = most_channels(run, kind)
    points_wide = columns_width(run, kind) * POINTS / columns
    for mask, (top, bottom) in zip(run.masks.values(), blocks.spans, strict=True):
        heads, width = channels(mask, kind)[0].shape
        left, right = -0.5, width - 0.5
        axes.imshow(
            channel_colours(mask, kind),
            extent=(left, right, bottom, top),
            aspect="auto",
            interpolation="nearest",
        )
        if blocks.row_height * POINTS >= 4:
            axes.hlines([top + head for head in range(1, heads)], left, right, color="white", linewidth=0.8)
        if points_wide >= 4:
            axes.vlines(
                [channel + 0.5 for channel in range(width - 1)], top, bottom, color="white", linewidth=0.4
            )
        axes.add_patch(Rectangle((left, top), width, bottom - top, fill=False, edgecolor=LINE, linewidth=0.4))
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(blocks.bottom, 0))
    axes.set_title(f"{kind} channels: {kept_of(run, kind)}", color=ACCENT[kind], weight="bold")
    axes.set_xlabel(f"{kind} channel of the head")
    axes.set_xticks(index_ticks(columns, 8))
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    if labelled:
        label_rows(axes, run, blocks)


def label_rows(axes: Axes, run: RunFiles, blocks: Blocks) -> None:
    """Name the layers by index at the middle of their blocks and, where there is room, every head."""
    chosen = range(0, len(blocks.spans), blocks.label_every)
    axes.set_yticks([sum(blocks.spans[i]) / 2 for i in chosen], [str(run.layers[i].index) for i in chosen])
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


def draw_counts(axes: Axes, run: RunFiles, kind: Kind, blocks: Blocks, most: int) -> None:
    """One bar per layer: how many of its channels are kept; both kinds share the scale 0 to `most`."""
    counts = [int(channels(mask, kind)[0].sum()) for mask in run.masks.values()]
    middles = [(top + bottom) / 2 for top, bottom in blocks.spans]
    heights = [0.8 * (bottom - top) for top, bottom in blocks.spans]
    axes.barh(middles, counts, height=heights, color=ACCENT[kind])
    room = min(blocks.points(span) for span in blocks.spans)
    if room >= 5.5:
        for middle, count in zip(middles, counts, strict=True):
            write(axes, f"{count:,}", (count, middle), (2.5, 0), va="center", size=min(6.5, room))
    axes.set(xlim=(0, max(1, most) * 1.35), ylim=(blocks.bottom, 0), yticks=[])
    axes.set_title(f"{kind} kept", color=ACCENT[kind])
    axes.set_xlabel("channels")
    axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.spines["left"].set_color(LINE)


def kept_of(run: RunFiles, kind: Kind) -> str:
    """How many channels the masks keep, as text."""
    kept = sum(int(channels(mask, kind)[0].sum()) for mask in run.masks.values())
    total = sum(channels(mask, kind)[0].size for mask in run.masks.values())
    return f"{kept:,} of {total:,} kept ({100 * kept / total:.1f} %)"
