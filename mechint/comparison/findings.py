"""What a comparison shows, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mechint.comparison.comparison import METRICS, Claim, Comparison, Difference, Kind, Needed, Place, Variant
from mechint.comparison.difference import NEEDED
from mechint.comparison.flags import different_sparsity
from mechint.comparison.runs import OF_TASK
from mechint.errors import one_line
from mechint.metrics.overlap import Overlap
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import FEWEST_SEEDS, digits_for
from mechint.reporting.wording import number, percent, plural

# Of METRICS, in the order in which they are told.
TOLD = ("kl", "loss_degradation_percent", "loss", OF_TASK, "faithfulness", "top1_agreement", "dense_loss")
SEPARATE: tuple[Kind, Kind] = ("k", "v")


@dataclass(frozen=True)
class Section:
    """A heading and its sentences; plain text, each sentence on one line. about: the variant, or nothing."""

    title: str
    lines: tuple[str, ...]
    about: str = ""


def key_findings(comparison: Comparison) -> tuple[Section, ...]:
    """All findings: a summary, what stands against comparing, then each variant against the baseline."""
    sections = [Section("In short", tuple(in_short(comparison)))]
    if comparison.flags:
        sections.append(Section("Read this first", comparison.flags))
    baseline = comparison[comparison.baseline]
    parts: list[tuple[str, Callable[[Comparison, Variant, Variant, Difference], Iterable[str]]]] = [
        ("what the masks cost", costs),
        ("where they remove", places),
        ("overlap of the masks", overlaps),
        ("how certain the differences are", certainty),
    ]
    for name, difference in comparison.differences.items():
        for title, part in parts:
            lines = tuple(map(one_line, part(comparison, baseline, comparison[name], difference)))
            sections.append(Section(one_line(f"{name} against {baseline.name}: {title}"), lines, name))
    return tuple(sections)


def findings_text(comparison: Comparison) -> str:
    """key_findings.txt."""
    lines = ["Key findings", "=" * 60]
    for section in key_findings(comparison):
        lines += ["", section.title, *(f"  • {line}" for line in section.lines)]
    return "\n".join(lines) + "\n"


def in_short(comparison: Comparison) -> list[str]:
    """The units needed, where they are known; then for each variant what its masks cost and how alike they are; and how
    gates went.
    """
    lines = [needed_line(comparison)]
    baseline = comparison[comparison.baseline]
    for name, difference in comparison.differences.items():
        metric = next((metric for metric in TOLD if metric in difference.metrics), None)
        if comparison.comparable_loss and metric:
            lines.append(metric_line(metric, baseline, comparison[name], difference))
        lines.append(alike(baseline, comparison[name], difference))
    lines.append(gates_line(comparison))
    return [one_line(line) for line in lines if line]


def gates_line(comparison: Comparison) -> str:
    """How the gates of each variant went; nothing where none has gates."""
    told = [f"{variant.name} {variant.gates}" for variant in comparison.variants if variant.gates]
    return f"Gates: {'; '.join(told)}." if told else ""


def needed_line(comparison: Comparison) -> str:
    """How many units each variant needs for the same target; nothing where no variant tells."""
    known = {variant.name: variant.needed for variant in comparison.variants if variant.needed}
    if not known:
        return ""
    told = [f"{name} {needed_words(needed)}" for name, needed in known.items()]
    told += [f"{v.name} unknown" for v in comparison.variants if v.name not in known]
    for name, difference in comparison.differences.items():
        if claim := difference.metrics.get(NEEDED):
            told.append(f"difference of {name} {difference_words(claim, 2, 100, ' points')}")
    return f"Units needed for {next(iter(known.values())).target}: {'; '.join(told)}."


def needed_words(needed: Needed) -> str:
    """'12.1 ± 0.8 % (124 of 1,024; reaches 0.91 on evaluation data)', or between which measured shares."""
    share, sd = needed.share, needed.share.sd
    digits = digits_for(100 * sd, 2) if sd else 1
    spread = f" ± {100 * sd:.{digits}f}" if sd else ""
    about = f"{needed.units:,.0f} of {needed.total:,}"
    if needed.between:
        low, high = (f"{100 * end:.3g}" for end in needed.between)
        about += f"; interpolated between the measured {low} and {high} %"
    elif needed.achieved:
        about += f"; on evaluation data {number(needed.achieved.mean, 3)} is reached"
    elif needed.bound:
        about += "; the end of what was measured"
    return f"{needed.bound} {100 * share.mean:.{digits}f}{spread} % ({about})".strip()


def alike(baseline: Variant, variant: Variant, difference: Difference) -> str:
    """One sentence on where the masks differ and how many channels they share."""
    found, parts = difference.overlap, []
    if found is not None and found.iou is not None and found.chance is not None:
        highest = (
            f"; highest possible {found.highest.mean:.2f}" if sizes_differ(found) and found.highest else ""
        )
        parts.append(
            f"the masks share {found.iou.mean:.2f} of the channels that either keeps (IoU; matched random masks "
            f"{found.chance.mean:.2f}{highest})"
        )
    if difference.layers[0].claim.verdict != "too few seeds":
        told = sum(place.claim.distinguished for place in difference.layers)
        parts.append(f"sparsity is distinguished in {told} of {len(difference.layers)} layers")
    return f"{variant.name} and {baseline.name}: {', and '.join(parts)}." if parts else ""


def sizes_differ(found: Overlap) -> bool:
    """Whether the masks' sizes alone keep the IoU well below 1."""
    return found.highest is not None and found.highest.mean < 0.95


def costs(
    comparison: Comparison, baseline: Variant, variant: Variant, difference: Difference
) -> Iterable[str]:
    """Which of the two loses less, and by how much."""
    told = [name for name in TOLD if name in difference.metrics]
    if not told:
        missing = " and ".join(side.name for side in (baseline, variant) if side.spread("loss") is None)
        yield f"No numbers to compare: nothing was measured for {missing}."
    elif not comparison.comparable_loss:
        yield "Measured on different data, so not compared. Each on its own:"
        for side in (baseline, variant):
            known = [(m, spread) for m in METRICS if m.name in told and (spread := side.spread(m.name))]
            numbers = (f"{metric.title} {with_spread(spread, metric.digits)}" for metric, spread in known)
            yield f"{side.name}: {', '.join(numbers)}."
    else:
        if different_sparsity([baseline, variant]):
            ours, theirs = (percent(side.sparsity().mean) for side in (baseline, variant))
            yield f"At different sparsity: {variant.name} removes {theirs} of the channels, {baseline.name} {ours}."
        for name in told:
            yield metric_line(name, baseline, variant, difference)
    for side in (baseline, variant):
        for sentence in side.quoted:
            yield f"{side.name}: {sentence}"


def metric_line(name: str, baseline: Variant, variant: Variant, difference: Difference) -> str:
    """'KL: Tied 0.812 ± 0.010, Base 0.795 ± 0.008 nats/token; difference +0.017 [-0.011, +0.046], not distinguished
    (p = 0.31).'
    """
    metric, claim = next(metric for metric in METRICS if metric.name == name), difference.metrics[name]
    digits = digits_for(claim.error, metric.digits)
    sides = (
        f"{side.name} {with_spread(spread, digits, digits)}"
        for side, spread in ((variant, claim.variant), (baseline, claim.baseline))
    )
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{metric.title}: {', '.join(sides)}{unit}; difference {difference_words(claim, metric.digits)}."


def with_spread(spread: Spread, most: int, fewest: int = 0) -> str:
    """'2.512 ± 0.016': mean and standard deviation over runs, with as many decimals as that deserves."""
    digits = max(fewest, digits_for(spread.sd, most))
    return f"{spread.mean:.{digits}f}" + (f" ± {spread.sd:.{digits}f}" if spread.sd else "")


def difference_words(claim: Claim, most: int, scale: float = 1, unit: str = "") -> str:
    """'+0.017 [-0.011, +0.046], not distinguished (p = 0.31, paired by sequence)'; `most`: decimals at most."""
    effect = claim.effect
    digits = digits_for(scale * claim.error if claim.error else None, most)
    text = f"{scale * claim.difference + 0.0:+.{digits}f}{unit}"
    if effect.low is not None and effect.high is not None and effect.high > effect.low:
        text += f" [{scale * effect.low:+.{digits}f}, {scale * effect.high:+.{digits}f}]"
    elif claim.error:
        text += f" ± {scale * claim.error:.{digits}f} (standard error of the evaluation data alone)"
    if claim.verdict == "too few seeds":
        text += ", too few runs for a claim"
    elif claim.verdict != "not tested":
        p = (
            ""
            if claim.p is None
            else f" (p = {claim.p:.2g}{', paired by sequence' if effect.paired else ''})"
        )
        text += f", {claim.verdict}{p}"
    return text


def places(_: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> Iterable[str]:
    """Sparsity of K against V, of early, middle and late layers, and of the three layers that differ most."""
    for side in (baseline, variant):
        k, v = (percent(1 - side.sparsity(kind).mean) for kind in SEPARATE)
        yield f"{side.name} keeps {k} of its K channels and {v} of its V channels."
    for kind in SEPARATE:
        claim = difference.whole.sparsity[kind]
        if round(100 * abs(claim.difference), 1):
            more = "less" if claim.difference > 0 else "more"
            yield f"{variant.name} keeps {size_words(claim)} {more} of {kind.upper()}{mark(claim)}."
    if difference.by_depth:
        depths = (
            f"{baseline.name} has {len(baseline.indices)} layers and {variant.name} {len(variant.indices)}"
        )
        yield f"{depths}: thirds and layers stand for equal relative depth."
    ranked = sorted(difference.layers, key=lambda place: -abs(place.claim.difference))
    for place in [*difference.thirds, *(place for place in ranked[:3] if place.claim.difference)]:
        yield place_line(variant, place)
    if not ranked[0].claim.difference:
        yield "No layer differs in sparsity."


def place_line(variant: Variant, place: Place) -> str:
    """'early layers 0–1: KV-Tying is 2.5 ± 0.8 points less sparse (K -1.0, V -4.0), not distinguished'."""
    claim, how = place.claim, "is as sparse"
    if round(100 * abs(claim.difference), 1):
        how = f"is {size_words(claim)} {'more' if claim.difference > 0 else 'less'} sparse"
    k, v = (round(100 * place.sparsity[kind].difference, 1) + 0.0 for kind in SEPARATE)
    return f"{place.title}: {variant.name} {how} (K {k:+.1f}, V {v:+.1f}){mark(claim)}."


def size_words(claim: Claim) -> str:
    """'2.5 ± 0.8 points': a difference of fractions with its standard error."""
    error = f" ± {100 * claim.error:.1f}" if claim.error and round(100 * claim.error, 1) else ""
    return f"{100 * abs(claim.difference):.1f}{error} points"


def mark(claim: Claim) -> str:
    """', distinguished', where a test allows to say so."""
    if claim.distinguished:
        return ", distinguished"
    return ", not distinguished" if claim.verdict == "not distinguished" else ""


def overlaps(_: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> Iterable[str]:
    """IoU of the masks beside what chance gives, what their sizes allow, and what two seeds of one side give."""
    found = difference.overlap
    if found is None or found.iou is None or found.chance is None:
        yield (
            f"None is given: {difference.no_overlap}." if found is None else "Neither mask keeps any channel."
        )
        return
    k, v = (f"{kind.mean:.2f}" if kind else "—" for kind in (found.k_iou, found.v_iou))
    yield (
        f"IoU of the kept channels is {found.iou.mean:.2f} (K {k}, V {v}); matched random masks, with the same counts "
        f"in every layer, kind and KV head, have {found.chance.mean:.2f}."
    )
    if sizes_differ(found) and found.contained and found.highest:
        yield (
            f"The masks differ in size, so no IoU above {found.highest.mean:.2f} is possible; "
            f"{found.contained.mean:.2f} of the smaller one lies inside the larger."
        )
    sides = ((baseline, found.baseline_iou), (variant, found.variant_iou))
    if between := [f"{side.name} {spread.mean:.2f}" for side, spread in sides if spread]:
        yield f"Between two seeds of one variant it is: {', '.join(between)}."
    weights = {run.result.checkpoint.sha256 for run in (*baseline.runs, *variant.runs)}
    if None in weights:
        yield "Whether both are of one checkpoint is not recorded; only then do channel numbers correspond."
    elif len(weights) > 1:
        yield (
            "They are of different checkpoints: models trained apart have no common numbering of channels, so "
            "an overlap at the level of chance is to be expected and says nothing about what the channels do."
        )


def certainty(_: Comparison, baseline: Variant, variant: Variant, __: Difference) -> Iterable[str]:
    """How far the runs can tell a difference between variants from one between seeds."""
    n, m = len(baseline.runs), len(variant.runs)
    yield f"{baseline.name} has {plural(n, 'run')} and {variant.name} {m}. " + (
        f"With fewer than {FEWEST_SEEDS} runs on a side no difference is claimed; repeat with more seeds, e.g. "
        "-m seed=0,1,2,3."
        if min(n, m) < FEWEST_SEEDS
        else "A difference is called higher or lower where Welch's t test, adjusted for everything tested here "
        "(Holm), has p of at most 0.05: at most one comparison in twenty claims any difference where there is none. "
        "Numbers are means ± standard deviations over runs; brackets are 95 % intervals."
    )
    if {*baseline.numbers["sha256"]} != {*variant.numbers["sha256"]}:
        yield (
            "Seeds are those of learning the mask. They tell these checkpoints apart, not the ways in "
            "which they were trained: for that, compare several trainings of each."
        )
