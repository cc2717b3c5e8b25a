"""What makes variants hard or impossible to compare; said before anything else, as "title: sentence"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mechint.comparison.comparison import Variant
from mechint.comparison.identity import options
from mechint.errors import one_line
from mechint.metrics.spread import Spread
from mechint.reporting.report import shape_in_words

# Options that are told by a sentence of their own, or follow from the data.
TOLD_ELSEWHERE = frozenset({"evaluation_data", "data", "basis"})


def flags(variants: Sequence[Variant]) -> list[str]:
    """Sentences, the gravest first."""
    checks: list[Callable[[Sequence[Variant]], str | None]] = [
        different_data,
        different_sparsity,
        different_bases,
        nothing_measured,
        same_run_twice,
        different_shapes,
        different_options,
        several_checkpoints,
        uneven_seeds,
    ]
    return [one_line(sentence) for check in checks if (sentence := check(variants))]


def title_of(flag: str) -> str:
    """What a flag is about, for places without room for all of it."""
    return flag.split(":", 1)[0]


def _where_they_differ(variants: Sequence[Variant], fact: Callable[[Variant], str]) -> str | None:
    """'A this; B that', where not all variants with a fact have the same one."""
    facts = {variant.name: told for variant in variants if (told := fact(variant))}
    if len(set(facts.values())) < 2:
        return None
    return "; ".join(f"{name} {told}" for name, told in facts.items())


def different_data(variants: Sequence[Variant]) -> str | None:
    """Whether any two runs were measured on different tokens."""

    def data(variant: Variant) -> str:
        digests = sorted({digest[:8] for digest in variant.numbers["evaluation_digest"] if digest})
        return f"{variant.first.dataset.name} ({', '.join(digests)})" if digests else ""

    if not (told := _where_they_differ(variants, data)):
        return None
    return (
        "Different evaluation data: losses and everything made from them were measured on different tokens "
        f"and cannot be compared ({told})."
    )


def different_sparsity(variants: Sequence[Variant]) -> str | None:
    """Whether runs keep different shares of channels, beyond what rounding to a unit explains."""
    spreads = [variant.sparsity() for variant in variants]
    width = max(s.high for s in spreads) - min(s.low for s in spreads)
    if width <= 1.5 / min(variant.first.sparsity.total for variant in variants):
        return None
    told = "; ".join(f"{v.name} {percent_range(s, 2)}" for v, s in zip(variants, spreads, strict=True))
    return (
        "Different sparsity: a mask that removes more has a harder task, so differences in loss are not "
        f"differences between the variants alone (channels removed: {told})."
    )


def different_bases(variants: Sequence[Variant]) -> str | None:
    """Units that are directions of different bases, or channels here and directions there."""
    told = _where_they_differ(variants, lambda variant: ", ".join(dict.fromkeys(variant.numbers["basis"])))
    if not told:
        return None
    return (
        "Different bases: a unit is not the same thing everywhere, so compare counts and losses but not which units "
        f"are kept ({told})."
    )


def nothing_measured(variants: Sequence[Variant]) -> str | None:
    """Variants without numbers: masks of other programs."""
    names = [variant.name for variant in variants if variant.spread("loss") is None]
    if not names:
        return None
    verb = "has" if len(names) == 1 else "have"
    return (
        f"Not measured: {', '.join(names)} {verb} masks but no loss measured by mechint, "
        "so only masks can be compared."
    )


def same_run_twice(variants: Sequence[Variant]) -> str | None:
    """A directory that stands under two names."""
    seen: dict[object, str] = {}
    for variant in variants:
        for run in variant.runs:
            # masks of other programs were never started; several of their files may lie in one directory
            place = run.result.checkpoint.source if not run.result.started else run.directory.resolve()
            other = seen.setdefault(place, variant.name)
            if other != variant.name:
                return f"Same run: {other} and {variant.name} both contain the run in {run.directory}."
    return None


def different_shapes(variants: Sequence[Variant]) -> str | None:
    """Models of different depth, KV heads or width."""
    if not (
        told := _where_they_differ(variants, lambda variant: shape_in_words(variant.runs[0].layer_masks))
    ):
        return None
    how = (
        "layers are compared at equal relative depth, layer i of L being at (i + 0.5) / L"
        if len({len(variant.indices) for variant in variants}) > 1
        else "layers are compared by index, and shares rather than counts of channels"
    )
    return f"Different models: {told}. Here {how}, and masks of different shape have no overlap."


def different_options(variants: Sequence[Variant]) -> str | None:
    """Methods, units, ablations, steps and all other options that are not the same everywhere."""
    all_options = [options(variant.first) for variant in variants]
    told = []
    for name in dict.fromkeys(key for entry in all_options for key in entry):
        values = [entry.get(name) for entry in all_options]
        # where an option has no value at all, as for masks of other programs, that has been said already
        if len({str(value) for value in values if value is not None}) > 1 and not (
            name in TOLD_ELSEWHERE or name.startswith("basis.")
        ):
            each = (f"{variant.name} {value}" for variant, value in zip(variants, values, strict=True))
            told.append(f"{name}: {' | '.join(each)}")
    return f"Different options: {'; '.join(told)}." if told else None


def several_checkpoints(variants: Sequence[Variant]) -> str | None:
    """Variants whose runs are of more than one checkpoint."""
    names = ", ".join(variant.name for variant in variants if variant.numbers["sha256"].nunique() > 1)
    if not names:
        return None
    return f"Several checkpoints: the spread of {names} is that between checkpoints and seeds together."


def uneven_seeds(variants: Sequence[Variant]) -> str | None:
    """Different numbers of runs."""
    told = _where_they_differ(variants, lambda variant: str(len(variant.runs)))
    return f"Different numbers of runs: {told}." if told else None


def percent_range(spread: Spread, digits: int = 1) -> str:
    """'90.0 %', or '89.1 to 90.4 %' where the runs differ."""
    low, high = (f"{100 * value:.{digits}f}" for value in (spread.low, spread.high))
    return f"{low} %" if low == high else f"{low} to {high} %"
