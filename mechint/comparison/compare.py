"""From named directories to a Comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mechint.comparison.comparison import Comparison, Variant
from mechint.comparison.difference import differ
from mechint.comparison.flags import comparable_loss, flags
from mechint.comparison.variant import Directories, read_variant
from mechint.errors import UserError


def read_comparison(variant_dirs: Mapping[str, Directories], baseline: str | None = None) -> Comparison:
    """Read two or more variants and hold each against the baseline; None: the first.

    A variant is a run's directory, a directory with several runs that differ in the seed, a list of those, a
    result directory of the replaced tool, or a LeanK mask file. Raises UserError for what cannot be read or
    averaged.
    """
    if len(variant_dirs) < 2:
        raise UserError(
            "a comparison takes two or more variants, e.g. 'variants={Baseline: DIR0, KV-Tying: DIR1}'"
        )
    name = next(iter(variant_dirs)) if baseline is None else baseline
    if name not in variant_dirs:
        raise UserError(f"baseline={name!r} is none of the variants: {', '.join(variant_dirs)}")
    read = [read_variant(variant, directories) for variant, directories in variant_dirs.items()]
    notes = [note for _, remarks in read for note in remarks]
    return compare([variant for variant, _ in read], name, notes)


def compare(variants: Sequence[Variant], baseline: str, notes: Sequence[str] = ()) -> Comparison:
    """Hold every variant against the one named `baseline`."""
    reference = next(variant for variant in variants if variant.name == baseline)
    remarks = [
        f"{v.name}: {note}"
        for v in variants
        for note in dict.fromkeys(n for r in v.runs for n in r.result.notes)
    ]
    return Comparison(
        variants=tuple(variants),
        baseline=baseline,
        differences={v.name: differ(reference, v) for v in variants if v.name != baseline},
        flags=tuple(flags(variants)),
        notes=tuple(dict.fromkeys([*notes, *remarks])),
        comparable_loss=comparable_loss(variants),
    )
