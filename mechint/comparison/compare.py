"""From named directories to a Comparison: reading variants, finding what they have in common, and holding each against
the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mechint.comparison.comparison import Bound, Comparison, Needed, Variant
from mechint.comparison.difference import differ
from mechint.comparison.flags import different_data, flags
from mechint.comparison.identity import options, shown, telling
from mechint.comparison.runs import DECIMALS, find_runs, runs_frame, searched
from mechint.errors import UserError
from mechint.imports.leank import read_leank_run
from mechint.imports.old_results import is_old_run, read_old_run
from mechint.metrics.spread import Spread
from mechint.results import RunFiles
from mechint.results.find import summary_note
from mechint.results.result import RESULT, Result, TargetInfo

Directories = str | Path | Sequence[str | Path]

# What "units needed" are needed for where no run was searched for a target of its own.
FAITHFUL = TargetInfo(kind="faithfulness", value=0.9)


def read_comparison(variant_dirs: Mapping[str, Directories], baseline: str | None = None) -> Comparison:
    """Read two or more variants and hold each against the baseline; None: the first.

    A variant is a run's directory, a directory with several runs that differ in the seed or the sparsity, a list of
    those, a result directory of the replaced tool, or a LeanK mask file. Raises UserError for what cannot be read or
    averaged.
    """
    if len(variant_dirs) < 2:
        raise UserError(
            "a comparison takes two or more variants, e.g. 'variants={Baseline: DIR0, KV-Tying: DIR1}'"
        )
    name = next(iter(variant_dirs)) if baseline is None else baseline
    if name not in variant_dirs:
        raise UserError(f"baseline={name!r} is none of the variants: {', '.join(variant_dirs)}")
    read = {variant: read_variant(variant, directories) for variant, directories in variant_dirs.items()}
    return compare(
        {variant: one.runs for variant, one in read.items()},
        name,
        [note for one in read.values() for note in one.notes],
        {variant: one.sums for variant, one in read.items()},
    )


@dataclass
class Read:
    """The runs of a variant, the results that sum some of them up, and notes."""

    runs: list[RunFiles] = field(default_factory=list)
    sums: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(
    variants: Mapping[str, Sequence[RunFiles]],
    baseline: str,
    notes: Sequence[str] = (),
    sums: Mapping[str, Sequence[Result]] | None = None,
) -> Comparison:
    """Hold the runs of every variant against those of the one named `baseline`; sums: results that sum up runs."""
    chosen, remarks = at_one_target(variants)
    target = wanted_target([run for runs in variants.values() for run in runs])
    made = [
        Variant(
            name, tuple(chosen[name]), tuple(runs), needed(runs, target), tuple((sums or {}).get(name, ()))
        )
        for name, runs in variants.items()
    ]
    reference = next(variant for variant in made if variant.name == baseline)
    remarks += [
        f"{v.name}: {note}"
        for v in made
        for note in dict.fromkeys(n for run in v.runs for n in run.result.notes)
    ]
    return Comparison(
        variants=tuple(made),
        baseline=baseline,
        differences={v.name: differ(reference, v) for v in made if v.name != baseline},
        flags=tuple(flags(made)),
        notes=tuple(dict.fromkeys([*notes, *remarks])),
        comparable_loss=different_data(made) is None,
    )


def read_variant(name: str, directories: Directories) -> Read:
    """The runs of a variant, from a run's directory, one with several runs, or a list of those.

    The runs may differ in nothing but seed and sparsity; only where they are listed may their checkpoints differ as
    well. Raises UserError where there is no finished run, or where runs do not belong together.
    """
    listed = [directories] if isinstance(directories, (str, Path)) else directories
    if not isinstance(listed, Sequence) or not all(isinstance(path, (str, Path)) for path in listed):
        raise UserError(f"variant {name!r} is {directories!r}; give it a directory, or a list of directories")
    read = Read()
    for directory in map(Path, listed):
        found = _read_runs(name, directory)
        _require_one_kind(name, found.runs, directory)
        read = Read(read.runs + found.runs, read.sums + found.sums, read.notes + found.notes)
    runs = read.runs
    if not runs:
        raise UserError(f"variant {name!r} has no directory; give it one, or a list of them")
    _require_one_kind(name, runs)
    shapes = {tuple((*mask.k_mask.shape, *mask.v_mask.shape) for mask in run.layer_masks) for run in runs}
    if len(shapes) > 1:
        raise UserError(
            f"variant {name!r}: its runs are of models of different shapes; compare them as two variants"
        )
    return read


def _read_runs(name: str, directory: Path) -> Read:
    """The runs in or below one directory."""
    if (directory / RESULT).exists():
        run = RunFiles.read(directory)
        if searched(run.result) or summary_note(directory, run.result) is None:
            return Read([run])
    if is_old_run(directory):
        return Read([read_old_run(directory)])
    if directory.suffix in {".pth", ".pt"}:
        return Read([read_leank_run(directory)])
    found = find_runs(directory, searches=True)
    notes = [f"{name}: {note}" for note in found.notes]
    for run_ in found.unfinished:
        reason = f": {run_.reason}" if run_.reason else ""
        notes.append(f"{name}: {run_.directory} is left out, its status is {run_.status}{reason}.")
    if not found.finished:
        raise UserError(
            f"variant {name!r}: no finished run (result.json) in or below {directory}; "
            "give the output directory of a run"
        )
    return Read([RunFiles.read(path) for path in found.finished], list(found.sums.values()), notes)


def _require_one_kind(name: str, runs: Sequence[RunFiles], directory: Path | None = None) -> None:
    """Refuse runs that differ in more than seed and sparsity; below a directory, also in the checkpoint.

    Raises UserError that names what differs, and the remedy.
    """
    all_options = [options(run.result) for run in runs]
    if directory is not None:
        for run, entry in zip(runs, all_options, strict=True):
            weights = run.result.checkpoint
            entry["checkpoint"] = f"{weights.name} {str(weights.sha256)[:8]}"
    differing = telling(all_options, [0] * len(runs))
    if not differing:
        return
    values = [", ".join(shown(key, entry.get(key)) for key in differing) for entry in all_options]
    where = f"the runs below {directory}" if directory else "its runs"
    remedy = (
        f"name one run directory, or compare all of them: tree={directory}"
        if directory
        else "name one of them"
    )
    raise UserError(
        f"variant {name!r}: {where} differ in more than the seed ({' | '.join(dict.fromkeys(values))}), "
        f"so their mean says nothing; {remedy}"
    )


def at_one_target(
    variants: Mapping[str, Sequence[RunFiles]],
) -> tuple[dict[str, list[RunFiles]], list[str]]:
    """Of variants whose runs have several sparsities the runs at the highest that all have, or else at their own
    highest; and a note for each.
    """
    targets = {name: {_target(run) for run in runs} for name, runs in variants.items()}
    shared = set.intersection(*targets.values())
    chosen: dict[str, list[RunFiles]] = {}
    notes = []
    for name, runs in variants.items():
        several = targets[name]
        if len(several) == 1:
            chosen[name] = list(runs)
            continue
        target = max(shared or several)
        chosen[name] = [run for run in runs if _target(run) == target]
        listed = ", ".join(f"{value:g}" for value in sorted(several))
        notes.append(f"{name}: of its target sparsities {listed} the runs at {target:g} are compared.")
    return chosen, notes


def _target(run: RunFiles) -> float:
    """The target sparsity; masks that were searched for another target, or have none, count as one."""
    target = run.result.sparsity.target
    return -1.0 if searched(run.result) or target is None else round(target, DECIMALS)


def wanted_target(runs: Sequence[RunFiles]) -> TargetInfo:
    """The target that runs were searched for; faithfulness 0.9 where there is none, or several."""
    wanted = [run.result.target for run in runs if searched(run.result)]
    targets = {one.title: one for one in wanted if one is not None and one.value is not None}
    return next(iter(targets.values())) if len(targets) == 1 else FAITHFUL


def needed(runs: Sequence[RunFiles], target: TargetInfo) -> Needed | None:
    """The units that a variant needs for a target: as searched, else between its sparsities; None where unknown."""
    title, total = target.title, runs[0].result.sparsity.total
    table = runs_frame(run.result for run in runs)
    if (table["searched_for"] == title).all():
        shares = Spread(tuple(table["kept"] / table["total"]))
        found = [run.result.target for run in runs if run.result.target is not None]
        bound: Bound = "more than" if any(map(_missed, found)) else ""
        achieved = Spread.of(one.achieved for one in found)
        return Needed(title, shares, table["kept"].mean(), total, None, bound, achieved)
    if table["searched_for"].notna().any() or target.highest is not None:
        return None
    if target.kind == "faithfulness" and any(run.result.task is not None for run in runs):
        return None  # that of the loss, which a task is not judged by
    assert target.value is not None
    crossings = [
        one
        for _, rows in table.groupby("seed", dropna=False)
        if (one := _crossing(rows, target.kind, target.value))
    ]
    if not crossings or len({bound for *_, bound in crossings}) > 1:
        return None
    share = Spread(tuple(estimate for estimate, *_ in crossings))
    bound = crossings[0][-1]
    between = (min(low for _, low, _, _ in crossings), max(high for *_, high, _ in crossings))
    return Needed(title, share, share.mean * total, total, None if bound else between, bound)


def _missed(target: TargetInfo) -> bool:
    """Whether a searched mask falls short of its target on evaluation data, by more than these may err."""
    if target.interval is None:
        return False
    (low, high), (least, most) = target.interval, target.bounds
    return low > most if target.kind == "kl" else high < least


def _crossing(rows: pd.DataFrame, kind: str, value: float) -> tuple[float, float, float, Bound] | None:
    """Where one seed's runs cross a target, seen from the densest: the share kept there, linear in its logarithm, the
    measured shares on both sides, and a bound where the target lies outside of what was measured.
    """
    rows = rows.dropna(subset=[kind]).sort_values("kept", ascending=False)
    shares, values = (rows["kept"] / rows["total"]).tolist(), rows[kind].tolist()
    if len(set(shares)) < 2:
        return None
    good = [v <= value if kind == "kl" else v >= value for v in values]
    if all(good):
        return shares[-1], shares[-1], shares[-1], "at most"
    first = good.index(False)
    if first == 0:
        return shares[0], shares[0], shares[0], "more than"
    inside, outside = first - 1, first
    if shares[outside] <= 0:
        return None
    way = (value - values[outside]) / (values[inside] - values[outside])
    low, high = math.log(shares[outside]), math.log(shares[inside])
    return math.exp(low + way * (high - low)), shares[outside], shares[inside], ""
