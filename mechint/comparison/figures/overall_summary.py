"""All variants and all numbers on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mechint.comparison.comparison import METRICS, Claim, Comparison, Metric
from mechint.comparison.figures.looks import Look, variant_looks
from mechint.comparison.figures.page import PALE, WARNING, comparison_page, several_runs, shortened
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import digits_for
from mechint.reporting.style import ACCENT, INK, KINDS, LINE, QUIET, figure_style, save

WIDTH, ROW, PANEL_EXTRA = 9.2, 0.34, 0.8  # inches
SIZE, NAMES = 7.0, 112.0  # points: type size, room for the names at the left
TITLES = {
    "loss": "Loss: dense (hollow) → masked",
    "loss_degradation_percent": "Loss degradation",
    "kl": "KL(dense || masked)",
    "faithfulness": "Faithfulness",
    "top1_agreement": "Top-1 agreement",
}
UNITS = {"nats/token": "nats per token", "%": "% of own dense loss", "": ""}


class OverallSummary:
    """overall_summary.png: a panel per number, a row per variant; dots are runs, the large one is their mean.

    Beside each row stands its number and, in brackets, the difference from the baseline.
    """

    filename: ClassVar[str] = "overall_summary.png"

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        metrics = {metric.name: metric for metric in METRICS}
        others = [variant.name for variant in comparison.others]
        who = others[0] if len(others) == 1 else f"{len(others)} variants"
        size = (WIDTH, 2 * (ROW * len(comparison.variants) + PANEL_EXTRA))
        title = f"{who} against {comparison.baseline}"
        with figure_style():
            figure, body = comparison_page(comparison, size, title, notes(comparison))
            grid = body.add_gridspec(2, 3)
            for number, name in enumerate([*TITLES, "sparsity"]):
                axes = body.add_subplot(grid[divmod(number, 3)])
                if name == "sparsity":
                    draw_sparsity(axes, comparison)
                else:
                    draw_metric(axes, comparison, metrics[name])
                name_rows(axes, comparison, labelled=number % 3 == 0)
            return [save(figure, directory / self.filename, dpi)]


def notes(comparison: Comparison) -> list[str]:
    """How to read dots and brackets."""
    if not comparison.comparable_loss:
        return ["Measured on different data, so no differences from the baseline are given."]
    if not any(difference.metrics for difference in comparison.differences.values()):
        return []
    line = "In brackets: difference from the baseline."
    if not several_runs(comparison):
        return [f"{line} One run each: no difference can be told from noise."]
    return [
        f"{line} Bold: distinguished (adjusted t test; 4 runs or more). Large mark: mean; small dots: runs."
    ]


def name_rows(axes: Axes, comparison: Comparison, labelled: bool) -> None:
    """The vertical axis: one row per variant from the top; names at the leftmost panels."""
    names = [variant.name for variant in comparison.variants]
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(
        range(len(names)), [shortened(name, SIZE, NAMES, True) if labelled else "" for name in names]
    )
    looks = variant_looks(comparison)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        weight = "bold" if name == comparison.baseline else "normal"
        label.set(color=looks[name].colour, size=SIZE, weight=weight)


def draw_metric(axes: Axes, comparison: Comparison, metric: Metric) -> None:
    """One panel: a number of every variant, with its range over runs."""
    looks, comparable = variant_looks(comparison), comparison.comparable_loss
    unit = UNITS.get(metric.unit, metric.unit)
    axes.set_title(TITLES[metric.name], weight="bold")
    axes.set_xlabel(", ".join(filter(None, [unit, f"{metric.better} is better"])))
    if not comparable:
        axes.set_xlabel("⚠ different evaluation data: not comparable", color=WARNING)
    base = comparison[comparison.baseline].spread(metric.name)
    if base is not None and comparable:
        axes.axvline(base.mean, color=LINE, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
    measured = []
    for row, variant in enumerate(comparison.variants):
        axes.axhline(row, color=PALE, linewidth=0.8, zorder=0)
        spread, look = variant.spread(metric.name), looks[variant.name]
        if spread is None:
            label(axes, row, "not measured", QUIET, False)
            continue
        measured.append(spread)
        dense = variant.spread("dense_loss")
        if metric.name == "loss" and dense:
            axes.plot([dense.mean, spread.mean], [row, row], color=look.colour, linewidth=0.8, alpha=0.5)
            hollow: dict[str, Any] = {"s": 22, "marker": look.marker, "facecolors": "white", "zorder": 2.5}
            axes.scatter([dense.mean], [row], edgecolors=look.colour, linewidths=0.9, **hollow)
        draw_spread(axes, row, spread, look)
        difference = comparison.differences.get(variant.name)
        claim = difference.metrics.get(metric.name) if difference and comparable else None
        words = in_words(metric, spread, claim, variant.error(metric.name))
        label(axes, row, words, INK, claim is not None and claim.distinguished)
    if not measured:
        axes.set_xticks([])
        return
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def draw_spread(axes: Axes, place: float, spread: Spread, look: Look, size: float = 34) -> None:
    """A large mark at the mean; with several runs also a dot for each and a line between the outermost."""
    if spread.n > 1:
        axes.plot([spread.low, spread.high], [place, place], color=look.colour, linewidth=1.6, alpha=0.55)
        axes.scatter(spread.values, [place] * spread.n, s=7, color=look.colour, linewidths=0, alpha=0.7)
    mark: dict[str, Any] = {"marker": look.marker, "edgecolors": "white", "linewidths": 0.6, "zorder": 3}
    axes.scatter([spread.mean], [place], s=size, color=look.colour, **mark)


def in_words(metric: Metric, spread: Spread, claim: Claim | None, error: float | None) -> str:
    """'2.46 (+0.37 ± 0.02)', with the decimals that the uncertainty deserves."""
    digits = digits_for(claim.error if claim else spread.sd or error, metric.digits)
    value = f"{spread.mean:.{digits}f}"
    if claim is None:
        return value
    error_words = f" ± {claim.error:.{digits}f}" if claim.error else ""
    return f"{value} ({claim.difference + 0.0:+.{digits}f}{error_words})".replace("-", "−")


def label(axes: Axes, row: int, words: str, colour: str, bold: bool) -> None:
    """A row's numbers, right of the panel."""
    look: dict[str, Any] = {"color": colour, "size": SIZE - 0.7, "weight": "bold" if bold else "normal"}
    axes.annotate(
        words, (1, row), xytext=(3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        va="center", annotation_clip=False, **look,
    )  # fmt: skip


def draw_sparsity(axes: Axes, comparison: Comparison) -> None:
    """Percentage of K channels and of V channels removed, and of both."""
    for row, variant in enumerate(comparison.variants):
        axes.axhline(row, color=PALE, linewidth=0.8, zorder=0)
        for kind, side in (("K", -0.13), ("V", 0.13)):  # K above V, so that neither hides the other
            spread = variant.sparsity("k" if kind == "K" else "v")
            percentages = Spread(tuple(100 * value for value in spread.values))
            draw_spread(axes, row + side, percentages, Look(ACCENT[kind], "o"), size=20)  # type: ignore[index]
        both = 100 * variant.sparsity().mean
        axes.plot([both], [row], color=INK, marker="|", markersize=9, linestyle="")
        label(axes, row, f"{both:.1f} %", INK, False)
    axes.set_title("Sparsity", weight="bold")
    axes.set_xlabel("channels removed, %")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    handles = [
        Line2D([], [], color=ACCENT[kind], marker="o", linestyle="", markersize=4, label=kind)
        for kind in KINDS
    ]
    handles.append(Line2D([], [], color=INK, marker="|", linestyle="", markersize=7, label="both"))
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.38, 1), ncols=3, fontsize=6.5, borderpad=0,
        handletextpad=0.1, columnspacing=0.8, borderaxespad=0.3,
    )  # fmt: skip
