"""How many directions each head's keys and values really use, beside how many the mask keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from mechint.reporting.context import KINDS, PARTS, Context
from mechint.reporting.style import (
    ACCENT,
    EMPTY,
    index_ticks,
    panel_looks,
    titled_figure,
)

WIDTH, LOWEST, TALLEST, ROOM = 9.0, 0.04, 0.16, 9.0  # inches


class RankFigure:
    """effective_rank: for every KV head the effective rank of its keys and values, and how many directions are kept.

    Drawn for runs in a basis that says what its directions are worth.
    """

    stem: ClassVar[str] = "effective_rank"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture, where ranks are known."""
        basis = context.result.basis
        if basis is None or not basis.effective_rank:
            return
        ranks = {(entry["name"], entry["kind"]): entry["rank"] for entry in basis.effective_rank}
        heads = [len(context.cells(layer, "K").kept) for layer in context.layers]
        starts = np.cumsum([0, *(count + 0.6 for count in heads)])
        lines = [
            "Effective rank: exp of the entropy of what a head's directions are worth to the basis; 1: a single "
            "direction does everything, the width of the pale bar: all count the same."
        ]
        height = starts[-1] * min(TALLEST, max(LOWEST, ROOM / starts[-1])) + 0.8
        title = f"{context.run.model_name}: effective rank of every KV head"
        figure, body = titled_figure(title, lines, WIDTH, height)
        grid = body.subgridspec(1, 2)
        for column, kind in enumerate(KINDS):
            axes = figure.add_subplot(grid[column])
            rows = np.concatenate(
                [at + np.arange(count) + 0.5 for at, count in zip(starts, heads, strict=False)]
            )
            kept = [context.cells(layer, kind).kept for layer in context.layers]
            widths = np.repeat([one.shape[1] for one in kept], heads)
            values = np.concatenate([ranks[layer.name, PARTS[kind]] for layer in context.layers])
            axes.barh(rows, widths, height=0.8, color=EMPTY, label="all")
            axes.barh(rows, values, height=0.8, color=ACCENT[kind], label="effective rank")
            counts = np.concatenate([one.sum(1) for one in kept])
            look: dict[str, Any] = {"marker": "|", "s": 26, "color": "black", "linewidths": 1.3, "zorder": 3}
            axes.scatter(counts, rows, label="kept by the mask", **look)
            chosen = list(index_ticks(len(heads), 32))
            axes.set_yticks([starts[i] + heads[i] / 2 for i in chosen])
            axes.set_yticklabels([str(context.layers[i].index) for i in chosen])
            axes.set(
                ylim=(starts[-1] - 0.4, -0.2), xlabel=f"{kind} directions", ylabel="layer, a row per KV head"
            )
            told = f"{values.mean():.1f} on average, {values.min():.1f} to {values.max():.1f}"
            axes.set_title(f"{kind}: effective rank {told}", color=ACCENT[kind], weight="bold")
            panel_looks(axes)
            axes.legend(loc="lower right", fontsize=6.5, frameon=True, framealpha=0.85, edgecolor="none")
        yield self.stem, figure
