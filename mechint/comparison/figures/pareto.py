"""What is lost against what is saved, over every run below a directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mechint.comparison.figures.looks import COLOURS, MARKERS, Dash, Look
from mechint.comparison.figures.sheet import POINTS, Header, KeyEntry, new_sheet
from mechint.comparison.study import BYTES_PER_ELEMENT, Study, StudyGroup, StudyPoint
from mechint.metrics.spread import Spread
from mechint.reporting.style import LINE, QUIET, figure_style, save, write
from mechint.reporting.wording import byte_size, plural

WIDTH, PANEL = 8.4, 2.05  # inches
DASHES: tuple[Dash, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
)
MOST_CURVES = 24  # in the key; more are drawn but counted there only


@dataclass(frozen=True)
class Quantity:
    """A row of panels. name: of StudyRun's number. logarithmic: drawn so where the values differ widely."""

    name: str
    title: str
    label: str
    logarithmic: bool = False


QUANTITIES = (
    Quantity("loss", "Loss of the masked model", "nats per token"),
    Quantity("kl", "KL(dense || masked)", "nats per token", logarithmic=True),
    Quantity("faithfulness", "Faithfulness", "1: dense, 0: empty"),
)


class Pareto:
    """pareto.png: loss, KL and faithfulness against sparsity and against KV bytes per token, a curve per group.

    A mark is the mean over seeds, the bar through it reaches from the lowest to the highest seed.
    """

    filename: ClassVar[str] = "pareto.png"

    def draw(self, study: Study, directory: Path, dpi: int) -> list[Path]:
        """Draw the figure into `directory` and return its path."""
        looks = group_looks(study.groups)
        rows = [q for q in QUANTITIES if any(p.spread(q.name) for g in study.groups for p in g.points)]
        with figure_style():
            figure, body = new_sheet(study_header(study, looks), PANEL * max(1, len(rows)) + 0.1)
            if not rows:
                body.text(0.5, 0.5, "No finished run has numbers to draw.", ha="center", color=QUIET)
                return [save(figure, directory / self.filename, dpi)]
            grid = body.add_gridspec(len(rows), 2)
            for row, quantity in enumerate(rows):
                left = body.add_subplot(grid[row, 0])
                right = body.add_subplot(grid[row, 1], sharey=left)
                draw_row(left, right, study.groups, looks, quantity, last=row == len(rows) - 1)
            return [save(figure, directory / self.filename, dpi)]


def group_looks(groups: Sequence[StudyGroup]) -> list[Look]:
    """A colour per checkpoint, a marker and dash per method on it; with one checkpoint a colour per method."""
    checkpoints = list(dict.fromkeys(group.checkpoint for group in groups))
    seen: dict[str, int] = {}
    looks = []
    for number, group in enumerate(groups):
        turn = seen[group.checkpoint] = seen.get(group.checkpoint, -1) + 1
        colour, dash = checkpoints.index(group.checkpoint), turn
        if len(checkpoints) in (1, len(groups)):  # colours alone tell the curves apart, as long as they last
            colour, turn, dash = number, number, number // len(COLOURS)
        marker = MARKERS[(turn + colour // len(COLOURS)) % len(MARKERS)]
        looks.append(Look(COLOURS[colour % len(COLOURS)], marker, DASHES[dash % len(DASHES)]))
    return looks


def study_header(study: Study, looks: Sequence[Look]) -> Header:
    """What was run, at which sparsities, and what is missing."""
    runs = study.runs
    seeds = [len(point.runs) for group in study.groups for point in group.points]
    facts = [plural(len(runs), "finished run"), plural(len(study.groups), "curve")]
    if seeds:
        facts.append(
            f"{min(seeds)} to {max(seeds)} seeds per point"
            if min(seeds) < max(seeds)
            else f"{plural(seeds[0], 'run')} per point"
        )
    for status in dict.fromkeys(run.status for run in study.unfinished):
        facts.append(f"{sum(run.status == status for run in study.unfinished)} {status}, not drawn")
    digests = sorted({run.evaluation_digest for run in runs if run.evaluation_digest})
    if len(digests) == 1:
        facts.append(f"all measured on the same tokens ({digests[0][:8]})")
    facts.append(f"cache at {BYTES_PER_ELEMENT} bytes per channel")
    quiet = [
        "Mark: mean over seeds; bar: from the lowest to the highest. Broken line: dense model; dotted: empty model."
    ]
    key = []
    for group, look in list(zip(study.groups, looks, strict=True))[:MOST_CURVES]:
        percentages = [f"{100 * point.sparsity:.4g}" for point in group.points]
        shown = percentages if len(percentages) <= 8 else [*percentages[:4], "…", *percentages[-3:]]
        dense = f"all channels {byte_size(group.dense_kv_bytes_per_token)} per token"
        key.append(KeyEntry(look, group.label, [f"sparsity {', '.join(shown)} %", dense]))
    if len(study.groups) > MOST_CURVES:
        quiet.append(
            f"{plural(len(study.groups) - MOST_CURVES, 'further curve')} not in the key; see the table."
        )
    title = f"What masks cost and what they save: runs below {study.root.name or study.root}"
    return Header(title, facts, quiet, key, study.flags, WIDTH * POINTS)


def draw_row(
    left: Axes,
    right: Axes,
    groups: Sequence[StudyGroup],
    looks: Sequence[Look],
    quantity: Quantity,
    last: bool,
) -> None:
    """One quantity against sparsity (left) and against bytes (right); `last` rows have numbers below them."""
    for axes in (left, right):
        for group, look in zip(groups, looks, strict=True):
            draw_group(axes, group, quantity, look, by_bytes=axes is right)
        axes.grid(color="#e6e8eb", linewidth=0.5)
        axes.set_axisbelow(True)
    scale_values(left, groups, quantity)
    for axes in (left, right):
        draw_references(axes, groups, looks, quantity, named=axes is right)
    scale_sparsity(left, groups, last)
    scale_bytes(right, groups, last)
    left.set_title(quantity.title, weight="bold")
    left.set_ylabel(quantity.label)
    right.tick_params(labelleft=False, which="both")


def draw_group(axes: Axes, group: StudyGroup, quantity: Quantity, look: Look, by_bytes: bool) -> None:
    """One curve with a mark and a bar at every sparsity."""
    found = [(place(point, by_bytes), point.spread(quantity.name)) for point in group.points]
    points: list[tuple[float, Spread]] = [(x, spread) for x, spread in found if spread is not None]
    if not points:
        return
    places, means = [x for x, _ in points], [spread.mean for _, spread in points]
    for x, spread in points:
        if spread.n > 1:
            axes.plot(
                [x, x], [spread.low, spread.high], color=look.colour, linewidth=1, marker="_", markersize=8
            )
    axes.plot(
        places, means, color=look.colour, linestyle=look.dash, linewidth=1.3, marker=look.marker, markersize=5,
        markeredgecolor="white", markeredgewidth=0.6,
    )  # fmt: skip


def place(point: StudyPoint, by_bytes: bool) -> float:
    """Where on the horizontal axis a point lies."""
    return point.kv_bytes_per_token if by_bytes else point.sparsity


def draw_references(
    axes: Axes, groups: Sequence[StudyGroup], looks: Sequence[Look], quantity: Quantity, named: bool
) -> None:
    """Levels of the dense and the empty model; in grey where all groups share them, else in each one's colour."""
    if quantity.name == "kl":
        return
    for name, dash in (("dense", (0, (4, 2))), ("empty", (0, (1, 1.5)))):
        if quantity.name == "faithfulness":
            levels = [(1.0 if name == "dense" else 0.0, LINE)]
        else:
            values = [getattr(group, f"{name}_loss") for group in groups]
            levels = [(v, look.colour) for v, look in zip(values, looks, strict=True) if v is not None]
            known = [value for value, _ in levels]
            if known and max(known) - min(known) <= 0.01 * max(abs(value) for value in known):
                levels = [(known[0], LINE)]
        for level, colour in dict.fromkeys(levels):
            axes.axhline(level, color=colour, linestyle=dash, linewidth=1, alpha=0.9, zorder=1.5)
        if named and levels:
            height = sum(level for level, _ in levels) / len(levels)
            write(
                axes, name, (1, height), (3, 0), va="center", size=6.5, color=QUIET, annotation_clip=False
            ).xycoords = axes.get_yaxis_transform()


def scale_values(axes: Axes, groups: Sequence[StudyGroup], quantity: Quantity) -> None:
    """The vertical axis: logarithmic where it is asked for, possible and the values span more than a decade."""
    spreads = [
        spread for group in groups for point in group.points if (spread := point.spread(quantity.name))
    ]
    low, high = min(spread.low for spread in spreads), max(spread.high for spread in spreads)
    if quantity.logarithmic and low > 0 and high > 10 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        # Between decades too, or an axis that spans less than one would have no number at all.
        axes.yaxis.set_minor_locator(LogLocator(10, subs=(2, 5)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif quantity.logarithmic:
        axes.set_ylim(bottom=min(0, low) - 0.04 * (high - min(0, low)))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def scale_sparsity(axes: Axes, groups: Sequence[StudyGroup], last: bool) -> None:
    """Sparsity in per cent, with ticks where there are points, as far as these do not touch."""
    values = sorted({round(point.sparsity, 4) for group in groups for point in group.points})
    span = max(0.02, values[-1] - values[0])
    axes.set_xlim(values[0] - 0.06 * span, values[-1] + 0.06 * span)
    ticks: list[float] = []
    for value in reversed(values):
        if not ticks or ticks[-1] - value >= 0.1 * span:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{100 * tick:.3g} %" for tick in ticks])
    axes.tick_params(labelbottom=last)
    axes.set_xlabel("sparsity (units removed)" if last else "")


def scale_bytes(axes: Axes, groups: Sequence[StudyGroup], last: bool) -> None:
    """Bytes per token, logarithmic in powers of two where the values span more than a factor of four."""
    values = [point.kv_bytes_per_token for group in groups for point in group.points]
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) and max(values) > 4 * min(values):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(2, numticks=7))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_size(value)))
    axes.tick_params(labelbottom=last)
    axes.set_xlabel("KV cache per token, kept channels only" if last else "")
