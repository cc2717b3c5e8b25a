"""One layer's channels, large enough to read off head and channel."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mechint.masking.masks import LayerMask
from mechint.reporting.importance_overview import ImportanceOverview
from mechint.reporting.style import (
    ACCENT,
    KINDS,
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
from mechint.reporting.wording import percent
from mechint.results.result import LayerInfo
from mechint.results.run_files import RunFiles

POINTS = 72  # per inch
HEADER, FOOTER, BARS = 0.55, 0.62, 1.2  # inches
LONGEST_NAME = 100
DOTTED_FROM = 4  # points; smaller cells have no room for a dot


class LayerImportance:
    """<module path>_importance.png, one per layer: K above V, one row per KV head, one column per channel.

    A dot marks every kept channel; bars say how many each head keeps.
    """

    def draw(self, run: RunFiles, dpi: int) -> list[Path]:
        """Draw one figure per layer into the run's directory and return their paths, in layer order."""
        files = layer_files(run.masks)
        with figure_style():
            return [draw_layer(run, layer, run.directory / files[layer.name], dpi) for layer in run.layers]


def layer_files(names: Iterable[str]) -> dict[str, str]:
    """Map module paths to file names that every file system takes, all different.

    A name that had to be changed gets a digest of the original, so that two paths never share a file.
    """
    files, taken = {}, {ImportanceOverview.filename}
    for name in names:
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:LONGEST_NAME]
        filename = f"{safe}_importance.png"
        if safe != name or filename.lower() in taken:
            digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
            filename = f"{safe}_{digest}_importance.png"
        taken.add(filename.lower())
        files[name] = filename
    return files


def draw_layer(run: RunFiles, layer: LayerInfo, path: Path, dpi: int) -> Path:
    """Draw one layer; `layer` is its entry in result.json."""
    mask = run.masks[layer.name]
    heads, width = (max(channels(mask, kind)[0].shape[axis] for kind in KINDS) for axis in (0, 1))
    row = min(0.3, max(0.06, 3.6 / heads))  # inches
    column = min(0.26, max(0.045, 8.0 / width))
    cell = min(row, column) * POINTS
    panel, wide = max(0.5, row * heads), max(5.2, column * width)
    figure = new_figure(wide + BARS + 0.8, HEADER + 2 * (panel + 0.3) + FOOTER + 0.55)
    widths, heights = [wide / 2, wide / 2, BARS], [HEADER, panel, panel, FOOTER]
    grid = figure.add_gridspec(4, 3, width_ratios=widths, height_ratios=heights)
    headline(figure, grid[0, :], f"{run.model_name}: layer {layer.index}", [layer_line(layer, mask)])
    for place, kind in enumerate(KINDS, start=1):
        axes = figure.add_subplot(grid[place, :2])
        draw_heads(axes, mask, kind, width, cell)
        axes.set_xlabel("channel of the head" if kind == "V" else "")
        draw_head_counts(figure.add_subplot(grid[place, 2]), mask, kind, row * POINTS)
    dotted = cell >= DOTTED_FROM
    notes = [
        "Dot and hue: kept. Grey: removed." if dotted else "Hue: kept. Grey: removed.",
        "Darker: more important.",
    ]
    colour_key(figure.add_subplot(grid[3, 0]), figure.add_subplot(grid[3, 1:]), notes, dotted)
    return save(figure, path, dpi)


def layer_line(layer: LayerInfo, mask: LayerMask) -> str:
    """The layer's module path and how much of it is kept."""
    kept = sum(int(channels(mask, kind)[0].sum()) for kind in KINDS)
    total = sum(channels(mask, kind)[0].size for kind in KINDS)
    return f"{layer.name}  ·  {kept:,} of {total:,} channels kept ({percent(kept / total)})"


def draw_heads(axes: Axes, mask: LayerMask, kind: Kind, width: int, cell: float) -> None:
    """Cells [G, C] in the colours of importance, a dot on each kept one; `cell` is their size in points."""
    kept, _ = channels(mask, kind)
    heads = len(kept)
    edges: dict[str, Any] = (
        {"edgecolors": "white", "linewidth": min(0.8, cell / 10)} if cell >= DOTTED_FROM else {}
    )
    columns, rows = np.arange(kept.shape[1] + 1) - 0.5, np.arange(heads + 1) - 0.5
    axes.pcolormesh(columns, rows, channel_colours(mask, kind), **edges)
    if cell >= DOTTED_FROM:
        head, channel = np.nonzero(kept)
        axes.scatter(channel, head, s=(0.32 * cell) ** 2, color="white", linewidths=0, zorder=3)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(heads - 0.5, -0.5), ylabel="KV head")
    title = f"{kind}: {int(kept.sum()):,} of {kept.size:,} channels kept"
    axes.set_title(title, color=ACCENT[kind], weight="bold")
    axes.set_xticks(index_ticks(kept.shape[1], 16))
    axes.set_yticks(index_ticks(heads, 16))
    axes.spines[:].set_visible(False)


def draw_head_counts(axes: Axes, mask: LayerMask, kind: Kind, row: float) -> None:
    """One bar per KV head, `row` points high: how many of its C channels are kept, on a pale bar of all C."""
    kept, _ = channels(mask, kind)
    counts, total = kept.sum(1), kept.shape[1]
    axes.barh(range(len(counts)), total, height=0.72, color="#eceef0")
    axes.barh(range(len(counts)), counts, height=0.72, color=ACCENT[kind])
    if row >= 5.5:
        for head, count in enumerate(counts):
            write(axes, f"{count:,}", (total, head), (3, 0), va="center", size=min(7, row - 1))
    axes.set(xlim=(0, 1.25 * total), ylim=(len(counts) - 0.5, -0.5), xticks=[0, total], yticks=[])
    axes.set_title("kept per head", color=ACCENT[kind])
    axes.set_xlabel("channels" if kind == "V" else "")
    axes.spines[:].set_visible(False)
