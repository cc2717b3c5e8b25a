"""Pictures of a circuit: where it is, how its heads attend, and who reads whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from mechint.reporting.context import KINDS, Context, Kind
from mechint.reporting.style import ACCENT, INK, LINE, QUIET, save, titled_figure
from mechint.results.diagram import CircuitDrawing

WIDTH = 9.6  # inches
EDGE_COLOURS = {"k": ACCENT["K"], "q": "#6a3d9a", "v": ACCENT["V"]}
EDGE_NAMES = {"k": "keys", "q": "queries for kept keys", "v": "values"}


class CircuitHeads:
    """circuit_heads: how many K and V channels every KV head keeps, layers by heads. For tasks only."""

    stem: ClassVar[str] = "circuit_heads"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture, for runs on a task."""
        if context.result.task is None:
            return
        masks = context.run.layer_masks
        heads = max(len(mask.k_mask) for mask in masks)
        height = min(9.0, max(2.2, 0.17 * len(masks) + 0.9))
        about = f"Kept {context.noun}s of every KV head; empty cells keep none."
        title = f"{context.run.model_name}: heads of the circuit"
        figure, body = titled_figure(title, [about], WIDTH, height)
        grid = body.subgridspec(1, 2)
        for column, kind in enumerate(KINDS):
            kept = np.full((len(masks), heads), np.nan)
            for row, mask in enumerate(masks):
                counts = (mask.k_mask if kind == "K" else mask.v_mask).sum(1).numpy()
                kept[row, : len(counts)] = np.where(counts > 0, counts, np.nan)
            axes = figure.add_subplot(grid[column])
            most = 1.0 if np.isnan(kept).all() else float(np.nanmax(kept))
            axes.imshow(kept, aspect="auto", cmap=_shades(kind), vmin=0, vmax=most, interpolation="nearest")
            for row, head in zip(*np.nonzero(~np.isnan(kept)), strict=True):
                dark = kept[row, head] > 0.55 * most
                axes.text(
                    head, row, f"{kept[row, head]:.0f}", ha="center", va="center", fontsize=5.5,
                    color="white" if dark else INK,
                )  # fmt: skip
            step = max(1, len(masks) // 15)
            axes.set_yticks(
                range(0, len(masks), step), [str(layer.index) for layer in context.layers][::step]
            )
            axes.set_xticks(range(heads))
            axes.set_title(f"{kind}, kept {context.noun}s")
            axes.set_xlabel("KV head")
            axes.set_ylabel("layer")
        yield self.stem, figure


class CircuitPatterns:
    """circuit_patterns: attention of the circuit's first heads on one prompt, dense and masked. For tasks only."""

    stem: ClassVar[str] = "circuit_patterns"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture, where a run left patterns."""
        drawing = _drawing(context)
        example = drawing.examples[0] if drawing and drawing.examples else None
        if example is None or not example.patterns:
            return
        about = (
            "Rows attend to columns, on the first evaluation prompt; above in the dense model, below with the kept "
            f"units alone ({context.result.mask.ablation} ablation)."
        )
        columns = len(example.patterns)
        side = (WIDTH - 0.6) / max(columns, 2)
        title = f"{context.run.model_name}: attention before and after"
        figure, body = titled_figure(title, [about], WIDTH, 2 * side + 0.6)
        grid = body.subgridspec(2, columns)
        labels = [token.replace("\n", "⏎").strip() or "·" for token in example.tokens]
        size = max(3.5, min(6.5, 110 / max(len(labels), 1)))
        for column, pattern in enumerate(example.patterns):
            for row, values in enumerate((pattern.dense, pattern.masked)):
                axes = figure.add_subplot(grid[row, column])
                axes.imshow(np.array(values), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
                if row == 0:
                    axes.set_title(f"layer {pattern.layer}, query head {pattern.query_head}")
                axes.set_xticks([])
                axes.set_yticks([])
                if row == 1:
                    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
                if column == 0:
                    axes.set_yticks(range(len(labels)), labels, fontsize=size)
                    axes.set_ylabel(("dense", "masked")[row])
        yield self.stem, figure


class CircuitDiagram:
    """circuit_diagram, also as SVG: heads with kept channels, and which of them reads what others write. For tasks
    only.
    """

    stem: ClassVar[str] = "circuit_diagram"

    def draw(self, context: Context) -> Iterator[tuple[str, Figure]]:
        """The picture, where a run left its nodes."""
        drawing = _drawing(context)
        if drawing is None or not drawing.nodes:
            return
        about = (
            f"Nodes: KV heads with kept {context.noun}s (K, V). Arrows: the {len(drawing.edges)} strongest of what "
            "kept values write and a later head reads, by composition score"
            + (f"; the median of all pairs is {drawing.chance:.3f}." if drawing.chance is not None else ".")
        )
        layers = sorted({node.layer for node in drawing.nodes})
        height = min(11.0, max(2.6, 0.34 * len(layers) + 0.6))
        figure, body = titled_figure(f"{context.run.model_name}: who reads whom", [about], WIDTH, height)
        axes = figure.add_subplot(body)
        heads = max(node.head for node in drawing.nodes) + 1
        places = {(node.layer, node.head): (node.head, layers.index(node.layer)) for node in drawing.nodes}
        strongest = max((edge.score for edge in drawing.edges), default=1.0)
        for edge in drawing.edges:
            bend = 0.18 if edge.source[1] <= edge.target[1] else -0.18
            axes.add_patch(
                FancyArrowPatch(
                    places[edge.source],
                    places[edge.target],
                    connectionstyle=f"arc3,rad={bend}",
                    arrowstyle="-|>",
                    mutation_scale=7,
                    shrinkA=9,
                    shrinkB=9,
                    linewidth=0.4 + 1.8 * edge.score / strongest,
                    color=EDGE_COLOURS[edge.kind],
                    alpha=0.7,
                )
            )
        for node in drawing.nodes:
            x, y = places[node.layer, node.head]
            axes.plot(x, y, marker="o", markersize=13, color="white", markeredgecolor=LINE, zorder=3)
            axes.text(x, y, f"{node.k_kept}, {node.v_kept}", ha="center", va="center", fontsize=5, zorder=4)
        axes.set_xlim(-0.6, heads - 0.4)
        axes.set_ylim(-0.7, len(layers) - 0.3)
        axes.set_xticks(range(heads))
        axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_xlabel("KV head")
        axes.set_ylabel("layer (those with kept units)")
        shown = [kind for kind in EDGE_NAMES if any(edge.kind == kind for edge in drawing.edges)]
        handles = [
            Line2D([], [], color=EDGE_COLOURS[kind], label=f"read by {EDGE_NAMES[kind]}") for kind in shown
        ]
        if handles:
            axes.legend(handles=handles, fontsize=6.5, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3)
        axes.tick_params(colors=QUIET)
        save(figure, context.run.directory / f"{self.stem}.svg", 150)
        yield self.stem, figure


def _drawing(context: Context) -> CircuitDrawing | None:
    return None if context.result.task is None else context.run.drawing


def _shades(kind: Kind) -> Colormap:
    """White to the kind's colour; cells without a number stay blank."""
    shades = LinearSegmentedColormap.from_list(kind, ["#ffffff", ACCENT[kind]])
    return shades.with_extremes(bad="#ffffff")
