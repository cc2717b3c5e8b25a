"""What a comparison shows, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mechint.comparison.comparison import METRICS, Claim, Comparison, Difference, Needed, Place, Variant
from mechint.comparison.difference import NEEDED
from mechint.comparison.flags import different_sparsity
from mechint.errors import one_line
from mechint.metrics.overlap import Overlap
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import FEWEST_SEEDS, digits_for
from mechint.reporting.wording import number, percent, plural

# Of METRICS, in the order in which they are told.
TOLD = ("kl", "loss_degradation_percent", "loss", "faithfulness", "top1_agreement", "dense_loss")


@dataclass(frozen=True)
class Section:
    """A heading and its sentences; plain text, each sentence on one line. about: the variant, or nothing."""

    title: str
    lines: tuple[str, ...]
    about: str = ""


def key_findings(comparison: Comparison) -> tuple[Section, ...]:
    """All findings: a summary, what stands against comparing, then each variant against the baseline."""
    sections = [_section("In short", in_short(comparison))]
    if comparison.flags:
        sections.append(Section("Read this first", comparison.flags))
    baseline = comparison[comparison.baseline]
    parts: list[tuple[str, Callable[[Comparison, Variant, Variant, Difference], list[str]]]] = [
        ("what the masks cost", costs),
        ("where they remove", places),
        ("overlap of the masks", overlaps),
        ("what the runs can tell", certainty),
    ]
    for name, difference in comparison.differences.items():
        for title, part in parts:
            if lines := part(comparison, baseline, comparison[name], difference):
                sections.append(_section(f"{name} against {comparison.baseline}: {title}", lines, name))
    return tuple(sections)


def _section(title: str, lines: Iterable[str], about: str = "") -> Section:
    return Section(one_line(title), tuple(one_line(line) for line in lines), about)


def findings_text(comparison: Comparison) -> str:
    """key_findings.txt."""
    lines = ["Key findings", "=" * 60]
    for section in key_findings(comparison):
        lines += ["", section.title, *(f"  • {line}" for line in section.lines)]
    return "\n".join(lines) + "\n"


def in_short(comparison: Comparison) -> list[str]:
    """The units needed, where they are known; then for each variant what its masks cost and how alike they are."""
    lines = [needed_line(comparison)]
    baseline = comparison[comparison.baseline]
    for name, difference in comparison.differences.items():
        variant = comparison[name]
        if comparison.comparable_loss and (
            metric := next((m for m in TOLD if m in difference.metrics), None)
        ):
            lines.append(metric_line(metric, baseline, variant, difference))
        lines.append(alike(baseline, variant, difference))
    return [line for line in lines if line]


def needed_line(comparison: Comparison) -> str:
    """How many units each variant needs for the same target; nothing where no variant tells."""
    known = {variant.name: variant.needed for variant in comparison.variants if variant.needed}
    if not known:
        return ""
    target = next(iter(known.values())).target
    told = [f"{name} {needed_words(needed)}" for name, needed in known.items()]
    told += [f"{v.name} unknown" for v in comparison.variants if v.name not in known]
    line = f"Units needed for {target}: {'; '.join(told)}"
    if len(comparison.differences) == 1:
        [difference] = comparison.differences.values()
        if claim := difference.metrics.get(NEEDED):
            line += f"; difference {difference_words(claim, 2, 100, ' points')}"
    return f"{line}."


def needed_words(needed: Needed) -> str:
    """'12.1 ± 0.8 % (124 of 1,024; reaches 0.91 on evaluation data)', or between which measured shares."""
    share, sd = needed.share, needed.share.sd
    digits = digits_for(100 * (sd or 0), 2) if sd else 1
    spread = f" ± {100 * sd:.{digits}f}" if sd else ""
    bound = f"{needed.bound} " if needed.bound else ""
    about = [f"{needed.units:,.0f} of {needed.total:,}"]
    if needed.between:
        low, high = (f"{100 * end:.3g}" for end in needed.between)
        about.append(f"interpolated between the measured {low} and {high} %")
    elif needed.bound:
        about.append("the end of what was measured")
    elif needed.achieved:
        about.append(f"on evaluation data they reach {number(needed.achieved.mean, 3)}")
    return f"{bound}{100 * share.mean:.{digits}f}{spread} % ({'; '.join(about)})"


def alike(baseline: Variant, variant: Variant, difference: Difference) -> str:
    """One sentence on where the masks differ and how many channels they share."""
    parts = []
    found = difference.overlap
    if found is not None and found.iou is not None and found.chance is not None:
        parts.append(
            f"the masks share {found.iou.mean:.2f} of the channels that either keeps (IoU; matched random masks "
            f"{found.chance.mean:.2f}{highest_words(found)})"
        )
    if min(len(baseline.runs), len(variant.runs)) >= FEWEST_SEEDS:
        told = sum(place.claim.distinguished for place in difference.layers)
        parts.append(f"sparsity is distinguished in {told} of {len(difference.layers)} layers")
    return f"{variant.name} and {baseline.name}: {', and '.join(parts)}." if parts else ""


def highest_words(found: Overlap) -> str:
    """', highest possible 0.53' where the masks differ in size."""
    return f", highest possible {found.highest.mean:.2f}" if sizes_differ(found) and found.highest else ""


def sizes_differ(found: Overlap) -> bool:
    """Whether the masks' sizes alone keep the IoU well below 1."""
    return found.highest is not None and found.highest.mean < 0.95


def costs(comparison: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
    """Which of the two loses less, and by how much."""
    quoted = [f"{side.name}: {sentence}" for side in (baseline, variant) for sentence in side.quoted]
    told = [name for name in TOLD if name in difference.metrics]
    if not told:
        missing = " and ".join(side.name for side in (baseline, variant) if side.spread("loss") is None)
        return [f"No numbers to compare: nothing was measured for {missing}.", *quoted]
    if not comparison.comparable_loss:
        each = [own_cost(side) for side in (baseline, variant)]
        return ["Measured on different data, so not compared. Each for itself:", *each, *quoted]
    lines = [metric_line(name, baseline, variant, difference) for name in told]
    if different_sparsity([baseline, variant]):
        removed = ", ".join(
            f"{side.name} removes {percent(side.sparsity().mean)} of the channels"
            for side in (variant, baseline)
        )
        lines.insert(0, f"At different sparsity: {removed}.")
    if NEEDED in difference.metrics and len(comparison.differences) > 1:
        claim = difference.metrics[NEEDED]
        lines.append(f"Units needed: difference {difference_words(claim, 2, 100, ' points')}.")
    return lines + quoted


def own_cost(variant: Variant) -> str:
    """What its mask costs one variant."""
    told = [
        f"{title} {spread_words(spread)}"
        for name, title in (
            ("dense_loss", "dense loss"),
            ("loss", "masked loss"),
            ("kl", "KL"),
            ("faithfulness", "faithfulness"),
        )
        if (spread := variant.spread(name))
    ]
    return f"{variant.name}: {', '.join(told)}."


def metric_line(name: str, baseline: Variant, variant: Variant, difference: Difference) -> str:
    """'KL: Tied 0.812, Base 0.795 nats/token; difference +0.017 [-0.011, +0.046], not distinguished (p = 0.31).'"""
    metric = next(metric for metric in METRICS if metric.name == name)
    claim = difference.metrics[name]
    digits = digits_for(claim.error, metric.digits)
    unit = f" {metric.unit}" if metric.unit else ""
    values = f"{variant.name} {claim.variant.mean:.{digits}f}, {baseline.name} {claim.baseline.mean:.{digits}f}{unit}"
    return f"{metric.title}: {values}; difference {difference_words(claim, metric.digits)}."


def difference_words(claim: Claim, most: int, scale: float = 1, unit: str = "") -> str:
    """'+0.017 [-0.011, +0.046], not distinguished (p = 0.31, paired by sequence)'; `most`: decimals at most."""
    effect = claim.effect
    digits = digits_for(scale * claim.error if claim.error else None, most)
    text = f"{scale * claim.difference + 0.0:+.{digits}f}{unit}"
    if effect.low is not None and effect.high is not None and effect.high > effect.low:
        text += f" [{scale * effect.low:+.{digits}f}, {scale * effect.high:+.{digits}f}]"
    elif claim.error:
        text += f" ± {scale * claim.error:.{digits}f} (standard error of the evaluation data alone)"
    if claim.verdict not in ("too few seeds", "not tested"):
        text += f", {claim.verdict}"
        if claim.p is not None:
            text += f" (p = {claim.p:.2g}{', paired by sequence' if effect.paired else ''})"
    return text


def places(_: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
    """Sparsity of K against V, of early, middle and late layers, and of the three layers that differ most."""
    lines = [
        f"{side.name} keeps {percent(1 - side.sparsity('k').mean)} of its K channels "
        f"and {percent(1 - side.sparsity('v').mean)} of its V channels."
        for side in (baseline, variant)
    ]
    for kind in ("k", "v"):
        claim = difference.whole.sparsity[kind]  # type: ignore[index]
        if round(100 * abs(claim.difference), 1):
            more = "less" if claim.difference > 0 else "more"
            lines.append(f"{variant.name} keeps {size_words(claim)} {more} of {kind.upper()}{mark(claim)}.")
    if difference.by_depth:
        lines.append(
            f"{baseline.name} has {len(baseline.indices)} layers and {variant.name} {len(variant.indices)}: "
            "thirds and layers stand for equal relative depth."
        )
    lines += [place_line(variant, place) for place in difference.thirds]
    ranked = sorted(difference.layers, key=lambda place: -abs(place.claim.difference))
    most = [place for place in ranked[:3] if place.claim.difference]
    return lines + ([place_line(variant, place) for place in most] or ["No layer differs in sparsity."])


def place_line(variant: Variant, place: Place) -> str:
    """'early layers 0–1: KV-Tying is 2.5 ± 0.8 points less sparse (K -1.0, V -4.0), not distinguished'."""
    claim = place.claim
    if round(100 * abs(claim.difference), 1) == 0:
        how = "is as sparse"
    else:
        how = f"is {size_words(claim)} {'more' if claim.difference > 0 else 'less'} sparse"
    apart = ", ".join(
        f"{kind.upper()} {round(100 * place.sparsity[kind].difference, 1) + 0.0:+.1f}"  # type: ignore[index]
        for kind in ("k", "v")
    )
    return f"{place.title}: {variant.name} {how} ({apart}){mark(claim)}."


def size_words(claim: Claim) -> str:
    """'2.5 ± 0.8 points': a difference of fractions with its standard error."""
    error = f" ± {100 * claim.error:.1f}" if claim.error and round(100 * claim.error, 1) else ""
    return f"{100 * abs(claim.difference):.1f}{error} points"


def mark(claim: Claim) -> str:
    """', distinguished', where a test allows to say so."""
    if claim.distinguished:
        return ", distinguished"
    return ", not distinguished" if claim.verdict == "not distinguished" else ""


def overlaps(_: Comparison, baseline: Variant, variant: Variant, difference: Difference) -> list[str]:
    """IoU of the masks beside what chance gives, what their sizes allow, and what two seeds of one side give."""
    found = difference.overlap
    if found is None:
        return [f"None is given: {difference.no_overlap}."]
    if found.iou is None or found.chance is None:
        return ["Neither mask keeps any channel."]
    k, v = (f"{kind.mean:.2f}" if kind else "—" for kind in (found.k_iou, found.v_iou))
    lines = [
        f"IoU of the kept channels is {found.iou.mean:.2f} (K {k}, V {v}); matched random masks, with the same counts "
        f"in every layer, kind and KV head, have {found.chance.mean:.2f}."
    ]
    if sizes_differ(found) and found.contained and found.highest:
        lines.append(
            f"The masks differ in size, so no IoU above {found.highest.mean:.2f} is possible; {found.contained.mean:.2f} "
            "of the smaller one lies inside the larger."
        )
    between = [
        f"{side.name} {spread.mean:.2f}"
        for side, spread in ((baseline, found.baseline_iou), (variant, found.variant_iou))
        if spread
    ]
    if between:
        lines.append(f"Between two seeds of one variant it is: {', '.join(between)}.")
    weights = {run.result.checkpoint.sha256 for run in (*baseline.runs, *variant.runs)}
    if None in weights:
        lines.append(
            "Whether both are of one checkpoint is not recorded; only then do channel numbers correspond."
        )
    elif len(weights) > 1:
        lines.append(
            "They are of different checkpoints: models trained apart have no common numbering of channels, so "
            "an overlap at the level of chance is to be expected and says nothing about what the channels do."
        )
    return lines


def certainty(_: Comparison, baseline: Variant, variant: Variant, __: Difference) -> list[str]:
    """How far the runs can tell a difference between variants from one between seeds."""
    n, m = len(baseline.runs), len(variant.runs)
    lines = [
        f"{baseline.name} has {plural(n, 'run')} and {variant.name} {m}. "
        + (
            f"Below {FEWEST_SEEDS} runs a side nothing is claimed; repeat with more seeds, e.g. -m seed=0,1,2,3."
            if min(n, m) < FEWEST_SEEDS
            else "A difference is called higher or lower where Welch's t test, adjusted for everything tested here "
            "(Holm), has p of at most 0.05: at most one comparison in twenty claims any difference where there is none."
        )
    ]
    for name, title in (("kl", "KL"), ("loss", "Masked loss")):
        a, b = baseline.spread(name), variant.spread(name)
        if a and b and max(n, m) > 1:
            lines.append(f"{title}: {baseline.name} {spread_words(a)}; {variant.name} {spread_words(b)}.")
    if {*baseline.numbers["sha256"]} != {*variant.numbers["sha256"]}:
        lines.append(
            "Seeds are those of learning the mask. They tell these checkpoints apart, not the ways in "
            "which they were trained: for that, compare several trainings of each."
        )
    return lines


def spread_words(spread: Spread) -> str:
    """'2.512 (2.501 to 2.524, SD 0.016, n=2)', or the number alone."""
    if spread.sd is None:
        return f"{spread.mean:.4f}"
    digits = digits_for(spread.sd, 4)
    low, high, sd = (f"{value:.{digits}f}" for value in (spread.low, spread.high, spread.sd))
    return f"{spread.mean:.{digits}f} ({low} to {high}, SD {sd}, n={spread.n})"
