"""How many directions each head's keys and values really use, beside how many the mask keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from mechint.reporting.context import KINDS, PARTS, Context, Kind
from mechint.reporting.style import (
    ACCENT,
    EMPTY,
    heading_height,
    headline,
    index_ticks,
    new_figure,
    panel_looks,
    wrapped,
)

PANEL, LOWEST, TALLEST, ROOM = 4.2, 0.04, 0.16, 9.0  # inches


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
        lines = wrapped(
            [
                "Effective rank: exp of the entropy of what a head's directions are worth to the basis; 1: a single "
                "direction does everything, the width of the pale bar: all do alike."
            ],
            2 * PANEL,
        )
        header, body = heading_height(lines), starts[-1] * min(TALLEST, max(LOWEST, ROOM / starts[-1]))
        figure = new_figure(2 * PANEL + 0.6, header + body + 0.8)
        grid = figure.add_gridspec(2, 2, height_ratios=[header, body])
        title = f"{context.run.model_name}: effective rank of every KV head"
        headline(figure, grid[0, :], title, lines)
        for column, kind in enumerate(KINDS):
            axes = figure.add_subplot(grid[1, column])
            for layer, start in zip(context.layers, starts, strict=False):
                kept = context.cells(layer, kind).kept
                rows = start + np.arange(len(kept)) + 0.5
                first = layer is context.layers[0]
                axes.barh(rows, kept.shape[1], height=0.8, color=EMPTY, label="all" if first else None)
                rank = ranks[layer.name, PARTS[kind]]
                axes.barh(
                    rows, rank, height=0.8, color=ACCENT[kind], label="effective rank" if first else None
                )
                axes.scatter(
                    kept.sum(1),
                    rows,
                    marker="|",
                    s=26,
                    color="black",
                    linewidths=1.3,
                    zorder=3,
                    label="kept by the mask" if first else None,
                )
            chosen = list(index_ticks(len(heads), 32))
            axes.set_yticks([starts[i] + heads[i] / 2 for i in chosen])
            axes.set_yticklabels([str(context.layers[i].index) for i in chosen])
            axes.set(
                ylim=(starts[-1] - 0.4, -0.2), xlabel=f"{kind} directions", ylabel="layer, a row per KV head"
            )
            axes.set_title(f"{kind}: {summary(ranks, context, kind)}", color=ACCENT[kind], weight="bold")
            panel_looks(axes)
            axes.legend(loc="lower right", fontsize=6.5, frameon=True, framealpha=0.85, edgecolor="none")
        yield self.stem, figure


def summary(ranks: dict[tuple[str, str], list[float]], context: Context, kind: Kind) -> str:
    """The mean over heads."""
    every = [rank for layer in context.layers for rank in ranks[layer.name, PARTS[kind]]]
    return f"effective rank {np.mean(every):.1f} on average, {min(every):.1f} to {max(every):.1f}"
