"""What a comparison shows, in plain words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mechint.comparison.comparison import (
    Comparison,
    Difference,
    MetricDifference,
    PlaceDelta,
    Variant,
)
from mechint.comparison.flags import different_sparsity
from mechint.errors import one_line
from mechint.metrics.overlap import Overlap
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import FEWEST_SEEDS, Verdict, digits_for

MARKS: dict[Verdict, str] = {
    "higher": " (distinguished)",
    "lower": " (distinguished)",
    "not distinguished": " (not distinguished)",
    "too few seeds": "",
    "not tested": "",
}


@dataclass(frozen=True)
class Section:
    """A heading and its sentences; plain text, each sentence on one line."""

    title: str
    lines: tuple[str, ...]


def key_findings(comparison: Comparison) -> tuple[Section, ...]:
    """All findings: a summary, what stands against comparing, then each variant against the baseline."""
    baseline = comparison[comparison.baseline]
    summary = [
        line
        for name, difference in comparison.differences.items()
        for line in in_short(comparison, baseline, comparison[name], difference)
    ]
    sections = [Section("In short", tuple(one_line(line) for line in summary))]
    if comparison.flags:
        sections.append(Section("Read this first", comparison.flags))
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


def in_short(
    comparison: Comparison, baseline: Variant, variant: Variant, difference: Difference
) -> list[str]:
    """Three sentences at most: units needed or KL, where the masks differ, how alike they are."""
    lines = [units_needed(baseline, variant)]
    entry = difference.metrics.get("kl") or difference.metrics.get("loss")
    if entry is not None and comparison.comparable_loss:
        lines.append(metric_line(entry, baseline, variant))
    told = [delta.title for delta in difference.layers if delta.verdict in ("higher", "lower")]
    if told:
        lines.append(f"Sparsity is distinguished in {len(told)} of {len(difference.layers)} layers.")
    elif min(len(baseline.runs), len(variant.runs)) >= FEWEST_SEEDS:
        lines.append("No layer's sparsity is distinguished.")
    found = difference.overlap
    if found is not None and found.iou is not None and found.chance is not None:
        lines.append(
            f"The masks share {found.iou.mean:.2f} of what either keeps (IoU; matched random masks "
            f"{found.chance.mean:.2f})."
        )
    return [line for line in lines if line][:3]


def units_needed(baseline: Variant, variant: Variant) -> str:
    """How many units each side needs for the target that its runs were searched for; nothing for other runs."""
    told = []
    for side in (variant, baseline):
        targets = [run.result.target for run in side.runs]
        if any(target is None or target.units is None for target in targets):
            return ""
        kinds = {(target.kind, target.value) for target in targets if target}
        if len(kinds) != 1:
            return ""
        shares = Spread.of(
            (target.units or 0) / run.result.sparsity.total
            for target, run in zip(targets, side.runs, strict=True)
            if target
        )
        assert shares is not None
        spread = f" ± {100 * shares.sd:.1f}" if shares.sd else ""
        told.append(f"{side.name} {100 * shares.mean:.1f}{spread} % of its units")
        kind, value = kinds.pop()
    return f"For {kind} {value:g}, needed are: {'; '.join(told)}."


def findings_text(comparison: Comparison) -> str:
    """key_findings.txt."""
    lines = ["Key findings", "=" * 60]
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
    """'KL: Tied 0.812, Base 0.795; difference 0.017 [-0.011, 0.046], not distinguished (p = 0.31).'"""
    metric, effect = entry.metric, entry.effect
    width = None if effect.low is None or effect.high is None else (effect.high - effect.low) / 4
    digits = digits_for(width, metric.digits)
    unit = f" {metric.unit}" if metric.unit else ""
    values = f"{variant.name} {entry.variant.mean:.{digits}f}, {baseline.name} {entry.baseline.mean:.{digits}f}{unit}"
    text = f"{metric.title}: {values}; difference {effect.difference + 0.0:+.{digits}f}"
    if width:
        text += f" [{effect.low:+.{digits}f}, {effect.high:+.{digits}f}]"
    if entry.verdict in ("higher", "lower") or entry.verdict != "not tested":
        text += f", {entry.verdict}"
    if entry.p is not None and entry.verdict != "too few seeds":
        text += f" (p = {entry.p:.2g}{', paired by sequence' if effect.paired else ''})"
    return f"{text}."


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
    return f"{delta.title}: {how} ({kinds_apart}){MARKS[delta.verdict]}."


def points(fraction: float) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    value = round(100 * fraction, 1)
    return f"{value + 0.0:+.1f}"


def biggest(_: Comparison, _baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
    """The three layers whose sparsity differs most."""
    ranked = sorted(difference.layers, key=lambda delta: -abs(delta.sparsity))
    differing = [delta for delta in ranked[:3] if delta.sparsity]
    return [place_line(variant, delta) for delta in differing] or ["No layer differs in sparsity."]


def kinds(_: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
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
            lines.append(f"{variant.name} keeps {size} of {kind}{MARKS[difference.kinds[kind.lower()]]}.")
    return lines


def overlaps(_: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
    """IoU of the masks beside what chance gives and what two seeds of one side give."""
    found = difference.overlap
    if found is None:
        return [f"None is given: {difference.no_overlap}."]
    if found.iou is None or found.chance is None:
        return ["Neither mask keeps any channel."]
    lines = [
        f"IoU of the kept channels is {found.iou.mean:.2f} (K {iou_words(found.k_iou)}, V "
        f"{iou_words(found.v_iou)}); matched random masks, with the same counts in every layer, kind and KV head, have "
        f"{found.chance.mean:.2f}. {containment(found)}",
    ]
    between = [
        f"{side.name} {spread.mean:.2f}"
        for side, spread in ((baseline, found.baseline_iou), (variant, found.variant_iou))
        if spread
    ]
    if between:
        lines.append(f"Between two seeds of one variant it is: {', '.join(between)}.")
    return [*lines, *numbering(baseline, variant)]


def containment(found: Overlap) -> str:
    """How much of the smaller mask lies in the larger, where their sizes keep the IoU from 1."""
    if found.contained is None or found.highest is None or found.highest.mean > 0.95:
        return ""
    return (
        f"The masks differ in size, so that no IoU above {found.highest.mean:.2f} is possible: "
        f"{found.contained.mean:.2f} of the smaller one lies inside the larger."
    )


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
    lines = [
        f"{baseline.name} has {n} run{'s' * (n > 1)} and {variant.name} {m}. "
        + (
            f"Below {FEWEST_SEEDS} runs a side nothing is claimed; repeat with more seeds, e.g. -m seed=0,1,2,3."
            if min(n, m) < FEWEST_SEEDS
            else "A difference is called higher or lower where Welch's t test, adjusted for everything tested here "
            "(Holm), has p of at most 0.05: at most one comparison in twenty claims any difference where there is none."
        )
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
