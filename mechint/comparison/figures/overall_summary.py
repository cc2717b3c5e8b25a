"""All variants and all numbers on one page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mechint.comparison.comparison import METRICS, Comparison, Metric, MetricDifference, Variant
from mechint.comparison.figures.facts import several_runs
from mechint.comparison.figures.lettering import stacked
from mechint.comparison.figures.looks import Look, variant_looks
from mechint.comparison.figures.sheet import WARNING, comparison_header, new_sheet
from mechint.metrics.spread import Spread
from mechint.reporting.style import ACCENT, INK, KINDS, LINE, QUIET, figure_style, save, write

WIDTH, ROW, PANEL_EXTRA = 9.2, 0.34, 0.8  # inches
NAMES = 118.0  # points for the names at the left
SIZE = 7.0
TITLES = {
    "loss": "Loss: dense → masked",
    "loss_degradation_percent": "Loss degradation",
    "kl": "KL(dense || masked)",
    "faithfulness": "Faithfulness",
    "top1_agreement": "Top-1 agreement",
}
UNITS = {"nats/token": "nats per token", "%": "% of own dense loss", "": ""}


@dataclass(frozen=True)
class Row:
    """One variant's line in a panel, at height `place`."""

    variant: Variant
    place: int
    look: Look
    bold: bool


class OverallSummary:
    """overall_summary.png: a panel per number, a row per variant; dots are runs, the large one is their mean.

    Beside each row stands its number and, in brackets, the difference from the baseline.
    """

    filename: ClassVar[str] = "overall_summary.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        looks = variant_looks(comparison)
        rows = [
            Row(variant, place, looks[variant.name], variant.name == comparison.baseline)
            for place, variant in enumerate(comparison.variants)
        ]
        metrics = {metric.name: metric for metric in METRICS}
        panel = ROW * len(rows) + PANEL_EXTRA
        with figure_style():
            others = [row.variant.name for row in rows if not row.bold]
            who = others[0] if len(others) == 1 else f"{len(others)} variants"
            title = f"{who} against {comparison.baseline}"
            header = comparison_header(comparison, title, WIDTH, notes(comparison))
            figure, body = new_sheet(header, 2 * panel)
            grid = body.add_gridspec(2, 3)
            for number, name in enumerate(TITLES):
                axes = body.add_subplot(grid[divmod(number, 3)])
                draw_metric(axes, comparison, rows, metrics[name])
                name_rows(axes, rows, labelled=number % 3 == 0)
            axes = body.add_subplot(grid[1, 2])
            draw_sparsity(axes, rows)
            name_rows(axes, rows, labelled=False)
            return [save(figure, directory / self.filename, dpi)]


def notes(comparison: Comparison) -> list[str]:
    """How to read dots and brackets."""
    if not comparison.comparable_loss:
        return ["Measured on different data, so no differences from the baseline are given."]
    if not any(difference.metrics for difference in comparison.differences.values()):
        return []
    line = "In brackets: difference from the baseline (of the means)."
    if not several_runs(comparison):
        return [f"{line} One run each: no difference can be told from noise."]
    return [
        f"{line} Bold: distinguished (t test over seeds and data, adjusted for all claims; 4 seeds or more).",
        "Large mark: mean; small dots: single runs; line: from the lowest to the highest.",
    ]


def name_rows(axes: Axes, rows: list[Row], labelled: bool) -> None:
    """The vertical axis: one row per variant from the top; names at the leftmost panels."""
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks([row.place for row in rows], [])
    if not labelled:
        return
    names = ["\n".join(stacked(row.variant.name, SIZE, NAMES, 2, row.bold)) for row in rows]
    axes.set_yticks([row.place for row in rows], names)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(color=row.look.colour, size=SIZE, weight="bold" if row.bold else "normal")


def draw_metric(axes: Axes, comparison: Comparison, rows: list[Row], metric: Metric) -> None:
    """One panel: a number of every variant, with its range over runs."""
    spreads = {row.variant.name: row.variant.metrics.get(metric.name) for row in rows}
    better = "lower is better" if metric.better == "lower" else "higher is better"
    unit = UNITS.get(metric.unit, metric.unit)
    axes.set_title(TITLES[metric.name], weight="bold")
    axes.set_xlabel(", ".join(filter(None, [unit, better])))
    base = spreads[comparison.baseline]
    if base is not None and comparison.comparable_loss:
        axes.axvline(base.mean, color=LINE, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
    for row in rows:
        axes.axhline(row.place, color="#eef0f2", linewidth=0.8, zorder=0)
        spread = spreads[row.variant.name]
        if spread is None:
            label(axes, row, "not measured", QUIET, False)
            continue
        if metric.name == "loss":
            draw_dense(axes, row, spread)
        draw_spread(axes, row.place, spread, row.look)
        difference = comparison.differences.get(row.variant.name)
        change = difference.metrics.get(metric.name) if difference and comparison.comparable_loss else None
        strong = change is not None and change.verdict in ("higher", "lower")
        label(axes, row, in_words(metric, spread, change), INK, strong)
    if not comparison.comparable_loss:
        axes.set_xlabel("⚠ different evaluation data: not comparable", color=WARNING)
    measured = [spread for spread in spreads.values() if spread]
    if not measured:
        axes.set_xticks([])
        return
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if metric.name in ("faithfulness", "top1_agreement"):
        draw_limits(axes, measured)


def draw_spread(axes: Axes, place: float, spread: Spread, look: Look, size: float = 34) -> None:
    """A large mark at the mean; with several runs also a dot for each and a line between the outermost."""
    if spread.n > 1:
        axes.plot([spread.low, spread.high], [place, place], color=look.colour, linewidth=1.6, alpha=0.55)
        axes.scatter(spread.values, [place] * spread.n, s=7, color=look.colour, linewidths=0, alpha=0.7)
    axes.scatter(
        [spread.mean], [place], s=size, color=look.colour, marker=look.marker, edgecolors="white", linewidths=0.6,
        zorder=3,
    )  # fmt: skip


def draw_dense(axes: Axes, row: Row, masked: Spread) -> None:
    """The dense model's loss as a hollow mark, and the way from there to the masked one."""
    dense = row.variant.metrics.get("dense_loss")
    if dense is None:
        return
    axes.plot(
        [dense.mean, masked.mean], [row.place, row.place], color=row.look.colour, linewidth=0.8, alpha=0.5
    )
    axes.scatter(
        [dense.mean], [row.place], s=22, marker=row.look.marker, facecolors="white", edgecolors=row.look.colour,
        linewidths=0.9, zorder=2.5,
    )  # fmt: skip


def draw_limits(axes: Axes, spreads: list[Spread]) -> None:
    """Keep 1, the dense model, in sight."""
    low, high = min(spread.low for spread in spreads), max(spread.high for spread in spreads)
    room = 0.06 * max(1e-9, max(high, 1) - min(low, 1))
    axes.set_xlim(min(low, 1) - room, max(high, 1) + room)
    axes.axvline(1, color=LINE, linewidth=0.7, zorder=0)
    axes.annotate(
        "dense",
        (1, 1),
        xytext=(-2, 2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        size=6,
        color=QUIET,
    )


def in_words(metric: Metric, spread: Spread, change: MetricDifference | None) -> str:
    """'2.4601 (+0.3712)'."""
    value = f"{spread.mean:.{metric.digits}f}"
    if change is None or not math.isfinite(change.difference):
        return value
    return f"{value} ({change.difference:+.{metric.digits}f})".replace("-", "−")


def label(axes: Axes, row: Row, words: str, colour: str, bold: bool) -> None:
    """A row's numbers, right of the panel."""
    look: dict[str, Any] = {"color": colour, "size": SIZE - 0.5, "weight": "bold" if bold else "normal"}
    axes.annotate(
        words, (1, row.place), xytext=(3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        va="center", annotation_clip=False, **look,
    )  # fmt: skip


def draw_sparsity(axes: Axes, rows: list[Row]) -> None:
    """Fraction of K channels and of V channels removed, and of both."""
    for row in rows:
        axes.axhline(row.place, color="#eef0f2", linewidth=0.8, zorder=0)
        variant = row.variant
        for kind, spread, side in zip(KINDS, (variant.k_sparsity, variant.v_sparsity), (-1, 1), strict=True):
            place = row.place + 0.13 * side  # K above V, so that neither hides the other
            draw_spread(axes, place, percentages(spread), Look(ACCENT[kind], "o"), size=20)
            outward = -1 if spread.mean < variant.sparsity.mean else 1  # away from the mark of both
            end = 100 * (spread.low if outward < 0 else spread.high)
            look: dict[str, Any] = {"size": 6, "weight": "bold", "color": ACCENT[kind]}
            look["ha"] = "right" if outward < 0 else "left"
            write(axes, kind, (end, place), (5 * outward, 0), va="center", **look)
        axes.plot(
            [100 * variant.sparsity.mean], [row.place], color=INK, marker="|", markersize=9, linestyle=""
        )
        label(axes, row, f"{100 * variant.sparsity.mean:.2f} %", INK, False)
    axes.set_title("Sparsity of K, of V, of both (|)", weight="bold")
    axes.set_xlabel("channels removed, %")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def percentages(spread: Spread) -> Spread:
    """Fractions as percentages."""
    return Spread(tuple(100 * value for value in spread.values))
