"""Each layer's channels, large enough to read off head and channel, and all layers on one sheet."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mechint.reporting.context import KINDS, Cells, Context, Kind
from mechint.reporting.finding import headline_lines
from mechint.reporting.overview import ImportanceOverview, axis_name, most_channels
from mechint.reporting.style import (
    ACCENT,
    EMPTY,
    POINTS,
    Caution,
    cell_colours,
    colour_key,
    index_ticks,
    titled_figure,
    write,
)
from mechint.reporting.wording import percent
from mechint.results.result import LayerInfo

FOOTER, BARS = 0.68, 1.2  # inches
LONGEST_NAME = 100
DOTTED_FROM = 4  # points; smaller cells have no room for a dot

# So many layers are too many to be looked at one by one; on their sheet, columns and inches between rows.
MANY_LAYERS, COLUMNS, GAP = 9, 5, 0.12


class LayerImportance:
    """<module path>_importance, one per layer: K above V, one row per KV head, one column per channel.

    A dot marks every kept channel; bars say how many each head keeps. From nine layers on, layers_contact_sheet has all
    of them, small.
    """

    sheet: ClassVar[str] = "layers_contact_sheet"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """One figure per layer, in layer order, then the sheet."""
        stems = layer_stems(context.run.masks)
        for layer in context.layers:
            yield stems[layer.name], layer_figure(context, layer)
        if len(context.layers) >= MANY_LAYERS:
            yield self.sheet, contact_sheet(context)


def layer_stems(names: Iterable[str]) -> dict[str, str]:
    """Map module paths to file names without suffix that every file system takes, all different.

    A name that had to be changed gets a digest of the original, so that two paths never share a file.
    """
    stems, taken = {}, {ImportanceOverview.stem}
    for name in names:
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:LONGEST_NAME]
        stem = f"{safe}_importance"
        if safe != name or stem.lower() in taken:
            digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
            stem = f"{safe}_{digest}_importance"
        taken.add(stem.lower())
        stems[name] = stem
    return stems


def layer_figure(context: Context, layer: LayerInfo) -> Figure:
    """One layer."""
    shapes = [context.cells(layer, kind).kept.shape for kind in KINDS]
    heads, width = (max(shape[axis] for shape in shapes) for axis in (0, 1))
    row = min(0.3, max(0.06, 3.6 / heads))  # inches
    column = min(0.26, max(0.045, 8.0 / width))
    cell = min(row, column) * POINTS
    panel, wide = max(0.5, row * heads), max(5.2, column * width)
    warnings = [line for line in headline_lines(context) if isinstance(line, Caution)]
    figure, body = titled_figure(
        f"{context.run.model_name}: layer {layer.index}",
        [layer_line(context, layer), *warnings],
        wide + BARS + 0.8,
        2 * (panel + 0.3) + FOOTER + 0.55,
    )
    widths, heights = [wide / 2, wide / 2, BARS], [panel, panel, FOOTER]
    grid = body.subgridspec(3, 3, width_ratios=widths, height_ratios=heights)
    for place, kind in enumerate(KINDS):
        axes = figure.add_subplot(grid[place, :2])
        draw_heads(axes, context, layer, kind, width, cell)
        if kind == "V":
            axes.set_xlabel(axis_name(context, kind).removeprefix("V "))
        draw_head_counts(figure.add_subplot(grid[place, 2]), context, layer, kind, row * POINTS)
    dotted = cell >= DOTTED_FROM
    hue = "Dot and hue: kept (K blue, V orange). Grey: removed." if dotted else "Hue: kept. Grey: removed."
    notes = [
        hue,
        "Darker: higher rank of importance in the whole model.",
        f"Importance: {context.importance}.",
    ]
    colour_key(figure.add_subplot(grid[2, 0]), figure.add_subplot(grid[2, 1:]), notes, dotted)
    return figure


def layer_line(context: Context, layer: LayerInfo) -> str:
    """The layer's module path and how much of it is kept."""
    every = [context.cells(layer, kind).kept for kind in KINDS]
    kept, total = sum(int(one.sum()) for one in every), sum(one.size for one in every)
    return f"{layer.name}  ·  {kept:,} of {total:,} {context.noun}s kept ({percent(kept / total)})"


def draw_heads(axes: Axes, context: Context, layer: LayerInfo, kind: Kind, width: int, cell: float) -> None:
    """Cells [G, C] in the colours of importance, a dot on each kept one; `cell` is their size in points."""
    cells = context.cells(layer, kind)
    heads = len(cells.kept)
    draw_cells(axes, cells, kind, min(0.8, cell / 10) if cell >= DOTTED_FROM else 0)
    if cell >= DOTTED_FROM:
        head, channel = np.nonzero(cells.kept)
        axes.scatter(channel, head, s=(0.32 * cell) ** 2, color="white", linewidths=0, zorder=3)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(heads - 0.5, -0.5), ylabel="KV head")
    title = f"{kind}: {int(cells.kept.sum()):,} of {cells.kept.size:,} {context.noun}s kept"
    axes.set_title(title, color=ACCENT[kind], weight="bold")
    axes.set_xticks(index_ticks(cells.kept.shape[1], 16))
    axes.set_yticks(index_ticks(heads, 16))
    axes.spines[:].set_visible(False)


def draw_cells(axes: Axes, cells: Cells, kind: Kind, line: float) -> None:
    """Coloured cells [G, C], with white lines between them where these have a width."""
    edges: dict[str, Any] = {"edgecolors": "white", "linewidth": line} if line else {}
    columns, rows = (np.arange(size + 1) - 0.5 for size in reversed(cells.kept.shape))
    axes.pcolormesh(columns, rows, cell_colours(cells, kind), rasterized=True, **edges)


def draw_head_counts(axes: Axes, context: Context, layer: LayerInfo, kind: Kind, row: float) -> None:
    """One bar per KV head, `row` points high: how many of its C channels are kept, on a pale bar of all C."""
    kept = context.cells(layer, kind).kept
    counts, total = kept.sum(1), kept.shape[1]
    axes.barh(range(len(counts)), total, height=0.72, color=EMPTY)
    axes.barh(range(len(counts)), counts, height=0.72, color=ACCENT[kind])
    if row >= 5.5:
        for head, count in enumerate(counts):
            write(axes, f"{count:,}", (total, head), (3, 0), va="center", size=min(7, row - 1))
    axes.set(xlim=(0, 1.25 * total), ylim=(len(counts) - 0.5, -0.5), xticks=[0, total], yticks=[])
    axes.set_title("kept per head", color=ACCENT[kind])
    axes.set_xlabel(f"{context.noun}s" if kind == "V" else "")
    axes.spines[:].set_visible(False)


def contact_sheet(context: Context) -> Figure:
    """All layers, K above V, as small pictures with their counts."""
    width = min(2.6, max(1.5, 0.02 * max(most_channels(context, kind) for kind in KINDS)))
    tallest = max(len(context.cells(layer, "K").kept) for layer in context.layers)
    height = min(0.9, max(0.18, 0.045 * tallest))
    rows = math.ceil(len(context.layers) / COLUMNS)
    block = 2 * (height + 0.3) + GAP
    figure, body = titled_figure(
        f"{context.run.model_name}: all {len(context.layers)} layers",
        headline_lines(context),
        COLUMNS * (width + 0.25) + 0.3,
        rows * block + FOOTER + 0.9,
    )
    outer = body.subgridspec(2, 1, height_ratios=[rows * block, FOOTER])
    grid = outer[0].subgridspec(3 * rows, COLUMNS, height_ratios=[height, height, GAP] * rows)
    for number, layer in enumerate(context.layers):
        for place, kind in enumerate(KINDS):
            cells = context.cells(layer, kind)
            axes = figure.add_subplot(grid[3 * (number // COLUMNS) + place, number % COLUMNS])
            draw_cells(axes, cells, kind, 0)
            axes.set(xticks=[], yticks=[], ylim=(len(cells.kept) - 0.5, -0.5))
            axes.spines[:].set_visible(False)
            name = f"layer {layer.index}   " if kind == "K" else ""
            axes.set_title(
                f"{name}{kind} {int(cells.kept.sum()):,}/{cells.kept.size:,}", size=7.5, color=ACCENT[kind]
            )
    footer = outer[1].subgridspec(1, 3)
    notes = [
        f"Per layer: K above V, a row per KV head, a column per {context.noun}; kept/all.",
        "Blue (K) or orange (V): kept. Grey: removed. Darker: higher rank in the whole model.",
        f"Importance: {context.importance}.",
    ]
    colour_key(figure.add_subplot(footer[0]), figure.add_subplot(footer[1:]), notes)
    return figure
