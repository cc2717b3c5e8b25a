"""What makes variants hard or impossible to compare; said before anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mechint.comparison.comparison import Variant
from mechint.comparison.identity import options
from mechint.errors import one_line
from mechint.metrics.spread import Spread

# Options that are told by a sentence of their own, or follow from the data.
TOLD_ELSEWHERE = frozenset({"evaluation_data", "data"})


def flags(variants: Sequence[Variant]) -> list[str]:
    """Sentences, the gravest first."""
    checks: list[Callable[[Sequence[Variant]], str | None]] = [
        different_data,
        different_sparsity,
        nothing_measured,
        same_run_twice,
        different_shapes,
        different_options,
        several_checkpoints,
        uneven_seeds,
    ]
    return [sentence for check in checks if (sentence := check(variants))]


def different_data(variants: Sequence[Variant]) -> str | None:
    """Whether any two runs were measured on different tokens."""
    digests = {variant.name: _of_runs(variant, "dataset", "evaluation_digest") for variant in variants}
    known = {name: found for name, found in digests.items() if found}
    if len({digest for found in known.values() for digest in found}) < 2:
        return None
    told = "; ".join(
        f"{variant.name}: {', '.join(sorted(_of_runs(variant, 'dataset', 'name')))} "
        f"({', '.join(sorted(digest[:8] for digest in known[variant.name]))})"
        for variant in variants
        if variant.name in known
    )
    return (
        "DIFFERENT EVALUATION DATA: losses and everything made from them were measured on different tokens "
        f"and cannot be compared ({told})."
    )


def different_sparsity(variants: Sequence[Variant]) -> str | None:
    """Whether runs keep different shares of channels, beyond what rounding to a unit explains."""
    values = [value for variant in variants for value in variant.sparsity.values]
    smallest = min(variant.runs[0].result.sparsity.total for variant in variants)
    if max(values) - min(values) <= 1.5 / smallest:
        return None
    told = "; ".join(f"{variant.name} {_range(variant.sparsity)}" for variant in variants)
    return (
        "DIFFERENT SPARSITY: a mask that removes more has a harder task, so differences in loss are not "
        f"differences between the variants alone (channels removed: {told})."
    )


def nothing_measured(variants: Sequence[Variant]) -> str | None:
    """Variants without numbers: masks of other programs."""
    names = [variant.name for variant in variants if "loss" not in variant.metrics]
    if not names:
        return None
    verb = "has" if len(names) == 1 else "have"
    return (
        f"NOT MEASURED: {', '.join(names)} {verb} masks but no loss measured by mechint, "
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
                return f"SAME RUN: {other} and {variant.name} both contain the run in {run.directory}."
    return None


def different_shapes(variants: Sequence[Variant]) -> str | None:
    """Models of different depth, KV heads or width."""
    shapes = {variant.name: shape_in_words(variant) for variant in variants}
    if len(set(shapes.values())) == 1:
        return None
    told = "; ".join(f"{name} has {shape}" for name, shape in shapes.items())
    depths = {len(variant.layers) for variant in variants}
    how = (
        "layers are compared at equal relative depth, layer i of L being at (i + 0.5) / L"
        if len(depths) > 1
        else "layers are compared by index, and shares rather than counts of channels"
    )
    return f"Different models: {told}; {how}, and masks of different shape have no overlap."


def different_options(variants: Sequence[Variant]) -> str | None:
    """Methods, units, ablations, steps and all other options that are not the same everywhere."""
    all_options = [options(variant.first) for variant in variants]
    names = [
        name
        for name in dict.fromkeys(key for entry in all_options for key in entry)
        if name not in TOLD_ELSEWHERE
    ]
    # where an option has no value at all, as for masks of other programs, that has been said already
    differing = [
        name
        for name in names
        if len({str(entry.get(name)) for entry in all_options if entry.get(name) is not None}) > 1
    ]
    if not differing:
        return None
    told = "; ".join(
        f"{name}: "
        + " | ".join(
            f"{variant.name} {entry.get(name)}" for variant, entry in zip(variants, all_options, strict=True)
        )
        for name in differing
    )
    return one_line(f"Different options: {told}.")


def several_checkpoints(variants: Sequence[Variant]) -> str | None:
    """Variants whose runs are of more than one checkpoint."""
    names = [variant.name for variant in variants if len(_of_runs(variant, "checkpoint", "sha256")) > 1]
    if not names:
        return None
    told = ", ".join(names)
    return f"Several checkpoints: the spread of {told} is that between checkpoints and seeds together."


def uneven_seeds(variants: Sequence[Variant]) -> str | None:
    """Different numbers of runs."""
    counts = {variant.name: len(variant.runs) for variant in variants}
    if len(set(counts.values())) == 1:
        return None
    return f"Different numbers of runs: {', '.join(f'{name} {count}' for name, count in counts.items())}."


def comparable_loss(variants: Sequence[Variant]) -> bool:
    """Whether all losses that there are were measured on the same tokens."""
    return different_data(variants) is None


def shape_in_words(variant: Variant) -> str:
    """'5 layers of 32 K and 32 V channels in 4 KV heads'."""
    masks = list(variant.runs[0].masks.values())
    heads = "/".join(str(n) for n in sorted({mask.k_mask.shape[0] for mask in masks}))
    k = "/".join(str(n) for n in sorted({layer.k_total for layer in variant.layers}))
    v = "/".join(str(n) for n in sorted({layer.v_total for layer in variant.layers}))
    return f"{len(variant.layers)} layers of {k} K and {v} V channels in {heads} KV heads"


def _of_runs(variant: Variant, part: str, key: str) -> set[str]:
    found = [getattr(getattr(run.result, part), key) for run in variant.runs]
    return {str(value) for value in found if value is not None}


def _range(spread: Spread) -> str:
    low, high = f"{100 * spread.low:.2f} %", f"{100 * spread.high:.2f} %"
    return low if low == high else f"{low} to {high}"
