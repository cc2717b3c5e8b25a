"""What a comparison shows, in plain words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mechint.comparison.comparison import (
    Comparison,
    Difference,
    Metric,
    MetricDifference,
    PlaceDelta,
    Variant,
    Verdict,
)
from mechint.comparison.difference import chance_of_exceeding, verdict
from mechint.comparison.flags import different_sparsity
from mechint.errors import one_line
from mechint.metrics.spread import Spread

MARKS: dict[Verdict, str] = {
    "exceeds": " [more than the spread between seeds]",
    "within": " [within the spread between seeds]",
    "unknown": "",
}

# Above this probability of arising by chance, ranges that lie apart are called weak evidence.
WEAK = 0.05


@dataclass(frozen=True)
class Section:
    """A heading and its sentences; plain text, each sentence on one line."""

    title: str
    lines: tuple[str, ...]


def key_findings(comparison: Comparison) -> tuple[Section, ...]:
    """All findings: first what stands against comparing, then each variant against the baseline."""
    sections = [Section("Read this first", comparison.flags)] if comparison.flags else []
    baseline = comparison[comparison.baseline]
    parts: list[tuple[str, Callable[[Comparison, Variant, Variant, Difference], list[str]]]] = [
        ("what the masks cost", costs),
        ("where they remove", places),
        ("the three layers that differ most", biggest),
        ("K against V", kinds),
        ("overlap of the masks", overlaps),
        ("what the seeds can tell", seeds),
    ]
    for name, difference in comparison.differences.items():
        for title, part in parts:
            lines = part(comparison, baseline, comparison[name], difference)
            heading = f"{name} against {comparison.baseline}: {title}"
            if lines:
                sections.append(Section(one_line(heading), tuple(one_line(line) for line in lines)))
    return tuple(sections)


def findings_text(comparison: Comparison) -> str:
    """key_findings.txt."""
    lines = ["KEY FINDINGS", "=" * 60]
    for section in key_findings(comparison):
        lines += ["", section.title, *(f"  • {line}" for line in section.lines)]
    return "\n".join(lines) + "\n"


def costs(comparison: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
    """Which of the two loses less, and by how much."""
    quoted = [f"{side.name}: {sentence}" for side in (baseline, variant) for sentence in side.quoted]
    if not difference.metrics:
        missing = " and ".join(side.name for side in (baseline, variant) if not side.metrics)
        return [f"No numbers to compare: nothing was measured for {missing}.", *quoted]
    if not comparison.comparable_loss:
        each = [own_cost(side) for side in (baseline, variant)]
        return ["Measured on different data, so not compared. Each for itself:", *each, *quoted]
    uneven = (
        f"At different sparsity: {variant.name} removes {percent(variant.sparsity.mean)} of the channels, "
    )
    uneven += f"{baseline.name} {percent(baseline.sparsity.mean)}."
    return (
        ([uneven] if different_sparsity([baseline, variant]) else [])
        + [
            metric_line(metric, baseline, variant)
            for name in (
                "loss_degradation_percent",
                "loss",
                "kl",
                "faithfulness",
                "top1_agreement",
                "dense_loss",
            )
            if (metric := difference.metrics.get(name))
        ]
        + quoted
    )


def own_cost(variant: Variant) -> str:
    """What its mask costs one variant."""
    told = [
        f"{label} {spread_words(spread, digits)}{unit}"
        for name, label, digits, unit in (
            ("dense_loss", "dense loss", 4, ""),
            ("loss", "masked loss", 4, ""),
            ("kl", "KL", 4, ""),
            ("faithfulness", "faithfulness", 3, ""),
        )
        if (spread := variant.metrics.get(name))
    ]
    return f"{variant.name}: {', '.join(told)}."


def metric_line(entry: MetricDifference, baseline: Variant, variant: Variant) -> str:
    """'KV-Tying has WORSE loss degradation ...: +43.82 % vs +20.11 %, 23.71 points more.'"""
    metric, change = entry.metric, entry.difference
    both = f"{amount(metric, entry.variant)} vs {amount(metric, entry.baseline)}"
    step = abs(change)
    if round(step, metric.digits) == 0:
        return (
            f"{variant.name} and {baseline.name} have the same {metric.title}: {both}.{MARKS[entry.verdict]}"
        )
    if entry.verdict == "within":
        return (
            f"{variant.name} and {baseline.name} cannot be told apart by {metric.title}: {both}."
            f"{MARKS[entry.verdict]}"
        )
    better = (change < 0) == (metric.better == "lower")
    unit, more = "points " if metric.unit == "%" else "", "less" if change < 0 else "more"
    size = f"{step:.{metric.digits}f} {unit}{more}"
    return (
        f"{variant.name} has {'BETTER' if better else 'WORSE'} {metric.title}: {both}, {size} "
        f"({metric.better} is better).{MARKS[entry.verdict]}"
    )


def amount(metric: Metric, spread: Spread) -> str:
    """A metric's mean with its unit; a percentage with its sign."""
    sign = "+" if metric.unit == "%" else ""
    return f"{spread.mean:{sign}.{metric.digits}f}{f' {metric.unit}' if metric.unit else ''}"


def places(_: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
    """Sparsity of early, middle and late layers."""
    lines = [place_line(variant, delta) for delta in difference.thirds]
    if difference.by_depth:
        lines.insert(
            0,
            f"{baseline.name} has {len(baseline.layers)} layers and {variant.name} {len(variant.layers)}: "
            "thirds and layers stand for equal relative depth.",
        )
    return lines or ["The models have fewer than three layers, so there is no early, middle and late."]


def place_line(variant: Variant, delta: PlaceDelta) -> str:
    """'early layers 0–1: KV-Tying is 2.5 points less sparse (K -1.0, V -4.0)'."""
    if round(100 * abs(delta.sparsity), 1) == 0:
        how = f"{variant.name} is as sparse"
    else:
        more = "more" if delta.sparsity > 0 else "less"
        how = f"{variant.name} is {100 * abs(delta.sparsity):.1f} points {more} sparse"
    kinds_apart = f"K {points(delta.k_sparsity)}, V {points(delta.v_sparsity)}"
    return f"{delta.title}: {how} ({kinds_apart}).{MARKS[delta.verdict]}"


def points(fraction: float) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    value = round(100 * fraction, 1)
    return f"{value + 0.0:+.1f}"


def biggest(_: Comparison, _baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
    """The three layers whose sparsity differs most."""
    ranked = sorted(difference.layers, key=lambda delta: -abs(delta.sparsity))
    differing = [delta for delta in ranked[:3] if delta.sparsity]
    return [place_line(variant, delta) for delta in differing] or ["No layer differs in sparsity."]


def kinds(_: Comparison, baseline: Variant, variant: Variant, __: Difference) -> list[str]:
    """How each side shares its channels between K and V."""
    lines = [
        f"{side.name} keeps {percent(1 - side.k_sparsity.mean)} of its K channels "
        f"and {percent(1 - side.v_sparsity.mean)} of its V channels."
        for side in (baseline, variant)
    ]
    for kind, ours, theirs in (
        ("K", baseline.k_sparsity, variant.k_sparsity),
        ("V", baseline.v_sparsity, variant.v_sparsity),
    ):
        change = ours.mean - theirs.mean
        if round(100 * abs(change), 1):
            more = "more" if change > 0 else "less"
            size = f"{100 * abs(change):.1f} points {more}"
            lines.append(f"{variant.name} keeps {size} of {kind}.{MARKS[verdict(ours, theirs)]}")
    return lines


def overlaps(_: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
    """IoU of the masks beside what chance gives and what two seeds of one side give."""
    found = difference.overlap
    if found is None:
        return [f"None is given: {difference.no_overlap}."]
    if found.iou is None or found.chance_layers is None or found.chance_overall is None:
        return ["Neither mask keeps any channel."]
    lines = [
        f"IoU of the kept channels is {found.iou.mean:.2f} (K {iou_words(found.k_iou)}, V "
        f"{iou_words(found.v_iou)}). Chance alone gives {found.chance_layers.mean:.2f} for masks that keep "
        f"as many K and V channels of each layer, and {found.chance_overall.mean:.2f} for masks of the same "
        "overall size.",
    ]
    between = [
        f"{side.name} {spread.mean:.2f}"
        for side, spread in ((baseline, found.baseline_iou), (variant, found.variant_iou))
        if spread
    ]
    if between:
        lines.append(f"Between two seeds of one variant it is: {', '.join(between)}.")
    return [*lines, *numbering(baseline, variant)]


def numbering(baseline: Variant, variant: Variant) -> list[str]:
    """Whether equal channel numbers mean anything across the two sides."""
    weights = checkpoints(baseline) | checkpoints(variant)
    if None in weights:
        return [
            "Whether both are of one checkpoint is not recorded; only then do channel numbers correspond."
        ]
    if len(weights) == 1:
        return []
    return [
        "They are of different checkpoints: models trained apart have no common numbering of channels, so "
        "an overlap at the level of chance is to be expected and says nothing about what the channels do."
    ]


def checkpoints(variant: Variant) -> set[object]:
    """Digests of the weights behind a variant; None stands for unrecorded ones."""
    return {run.result.checkpoint.sha256 for run in variant.runs}


def seeds(_: Comparison, baseline: Variant, variant: Variant, __: Difference) -> list[str]:
    """How far the runs can tell a difference between variants from one between seeds."""
    n, m = len(baseline.runs), len(variant.runs)
    if min(n, m) < 2:
        single = " and ".join(side.name for side in (baseline, variant) if len(side.runs) < 2)
        return [
            f"Nothing: with a single run of {single} it cannot be told whether any of these differences "
            "exceeds the spread between seeds. Repeat with two or more seeds for each, e.g. -m seed=0,1,2."
        ]
    chance = chance_of_exceeding(n, m)
    lines = [
        f"{baseline.name} has {n} runs and {variant.name} {m}. A difference is marked as more than the "
        "spread between seeds where the ranges of the two sides, smallest to largest, do not overlap. "
        f"Without any real difference that happens in {percent(chance)} of cases, and here for many numbers"
        + (": weak evidence; add seeds." if chance > WEAK else ".")
    ]
    for name, title in SHORT:
        a, b = baseline.metrics.get(name), variant.metrics.get(name)
        if a and b:
            lines.append(f"{title}: {baseline.name} {spread_words(a)}; {variant.name} {spread_words(b)}.")
    if checkpoints(baseline) != checkpoints(variant):
        lines.append(
            "Seeds are those of learning the mask. They tell these checkpoints apart, not the ways in "
            "which they were trained: for that, compare several trainings of each."
        )
    return lines


SHORT = (("loss_degradation_percent", "Loss degradation [%]"), ("loss", "Masked loss"), ("kl", "KL"))


def spread_words(spread: Spread, digits: int = 4) -> str:
    """'2.5123 (2.5011 to 2.5235, SD 0.0158, n=2)', or the number alone."""
    if spread.sd is None:
        return f"{spread.mean:.{digits}f}"
    return (
        f"{spread.mean:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f}, "
        f"SD {spread.sd:.{digits}f}, n={spread.n})"
    )


def iou_words(spread: Spread | None) -> str:
    """An IoU, or a dash where no channel is kept."""
    return f"{spread.mean:.2f}" if spread else "—"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return f"{100 * fraction:.{digits}f} %"
