"""From directories to a Variant: reading its runs and averaging them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mechint.comparison.comparison import METRICS, Variant, VariantLayer
from mechint.comparison.identity import Options, options, shown, telling
from mechint.errors import UserError, one_line
from mechint.imports.leank import read_leank_run
from mechint.imports.old_results import is_old_run, quotations, read_old_run
from mechint.masking.masks import LayerMask
from mechint.metrics.overlap import same_shapes
from mechint.metrics.spread import Spread
from mechint.results import RunFiles
from mechint.results.find import newest_of_each, run_directories, summary_note
from mechint.results.result import RESULT, LayerInfo, Result, UnreadableResult

Directories = str | Path | Sequence[str | Path]


def read_variant(name: str, directories: Directories) -> tuple[Variant, list[str]]:
    """A variant from a run's directory, one with several runs (its seeds), or a list of those; and notes.

    The runs may differ in nothing but the seed; only where they are listed may their checkpoints differ as
    well. Raises UserError where there is no finished run, or where runs do not belong together.
    """
    listed = [directories] if isinstance(directories, (str, Path)) else directories
    if not isinstance(listed, Sequence) or not all(isinstance(path, (str, Path)) for path in listed):
        raise UserError(f"variant {name!r} is {directories!r}; give it a directory, or a list of directories")
    runs: list[RunFiles] = []
    notes: list[str] = []
    for directory in listed:
        found, remarks = _read_runs(name, Path(directory))
        _require_one_kind(name, found, Path(directory))
        runs, notes = runs + found, notes + remarks
    if not runs:
        raise UserError(f"variant {name!r} has no directory; give it one, or a list of them")
    _require_one_kind(name, runs)
    if not all(same_shapes(_layers(runs[0]), _layers(run)) for run in runs):
        raise UserError(
            f"variant {name!r}: its runs are of models of different shapes; compare them as two variants"
        )
    return make_variant(name, runs), notes


def make_variant(name: str, runs: Sequence[RunFiles]) -> Variant:
    """Average runs of models of the same shape."""
    numbers = {metric.name: Spread.of(_number(run, metric.name) for run in runs) for metric in METRICS}
    masks = [_layers(run) for run in runs]
    quoted = tuple(dict.fromkeys(sentence for run in runs for sentence in quotations(run.result)))
    return Variant(
        name=name,
        runs=tuple(runs),
        metrics={key: spread for key, spread in numbers.items() if spread is not None},
        layers=tuple(
            _layer(entry, position, [of_run[position] for of_run in masks], len(masks[0]))
            for position, entry in enumerate(runs[0].layers)
        ),
        sparsity=_spread(
            masks, lambda of_run: _removed([mask for m in of_run for mask in (m.k_mask, m.v_mask)])
        ),
        k_sparsity=_spread(masks, lambda of_run: _removed([m.k_mask for m in of_run])),
        v_sparsity=_spread(masks, lambda of_run: _removed([m.v_mask for m in of_run])),
        quoted=quoted,
    )


def _read_runs(name: str, directory: Path) -> tuple[list[RunFiles], list[str]]:
    """The runs in or below one directory."""
    if (directory / RESULT).exists():
        run = RunFiles.read(directory)
        if summary_note(directory, run.result) is None:
            return [run], []
    if is_old_run(directory):
        return [read_old_run(directory)], []
    if directory.suffix in {".pth", ".pt"}:
        return [read_leank_run(directory)], []
    done, notes = [], []
    for found in run_directories(directory):
        try:
            result = Result.read(found)
        except (OSError, UnreadableResult) as error:
            notes.append(f"{name}: {found} is left out, its result.json cannot be read ({error}).")
            continue
        if result.status == "done":
            if note := summary_note(found, result):
                notes.append(f"{name}: {note}")
            else:
                done.append((found, result))
        else:
            reason = f": {one_line(result.error, 200)}" if result.error else ""
            notes.append(f"{name}: {found} is left out, its status is {result.true_status}{reason}.")
    chosen, repeated = newest_of_each(done)
    if not chosen:
        raise UserError(
            f"variant {name!r}: no finished run (result.json) in or below {directory}; "
            "give the output directory of a run"
        )
    return [RunFiles.read(path) for path in chosen], notes + [f"{name}: {note}" for note in repeated]


def _require_one_kind(name: str, runs: Sequence[RunFiles], directory: Path | None = None) -> None:
    """Refuse to average runs that differ in more than the seed; below a directory, also in the checkpoint.

    Raises UserError that names what differs, and the remedy.
    """
    all_options = [_options(run, with_checkpoint=directory is not None) for run in runs]
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


def _options(run: RunFiles, with_checkpoint: bool) -> Options:
    weights = run.result.checkpoint
    name = f"{weights.name} {str(weights.sha256)[:8]}"
    checkpoint = {"checkpoint": name} if with_checkpoint else {}
    return {**checkpoint, "target_sparsity": run.result.sparsity.target, **options(run.result)}


def _number(run: RunFiles, name: str) -> float | None:
    """One metric of one run, by the names of METRICS."""
    if name in ("loss_degradation_percent", "faithfulness"):
        value: Any = getattr(run.result, name)
        return value
    return run.loss("dense") if name == "dense_loss" else getattr(run.result.metrics.masked, name)


def _layers(run: RunFiles) -> list[LayerMask]:
    """The masks by layer index."""
    return run.layer_masks


def _layer(entry: LayerInfo, position: int, masks: Sequence[LayerMask], depth: int) -> VariantLayer:
    return VariantLayer(
        index=entry.index,
        name=entry.name,
        depth=(position + 0.5) / depth,
        sparsity=_spread(masks, lambda mask: _removed([mask.k_mask, mask.v_mask])),
        k_sparsity=_spread(masks, lambda mask: _removed([mask.k_mask])),
        v_sparsity=_spread(masks, lambda mask: _removed([mask.v_mask])),
        importance=_spread(masks, lambda mask: _mean([mask.k_importance, mask.v_importance])),
        k_importance=_spread(masks, lambda mask: _mean([mask.k_importance])),
        v_importance=_spread(masks, lambda mask: _mean([mask.v_importance])),
        kept=_spread(masks, lambda mask: int(mask.k_mask.sum()) + int(mask.v_mask.sum())),
        k_kept=_spread(masks, lambda mask: int(mask.k_mask.sum())),
        v_kept=_spread(masks, lambda mask: int(mask.v_mask.sum())),
        k_total=masks[0].k_mask.numel(),
        v_total=masks[0].v_mask.numel(),
    )


def _spread(items: Sequence[Any], measure: Callable[[Any], float]) -> Spread:
    return Spread(tuple(float(measure(item)) for item in items))


def _removed(masks: Sequence[Tensor]) -> float:
    """Fraction of the channels in `masks` that are removed."""
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def _mean(importances: Sequence[Tensor]) -> float:
    return sum(float(part.sum()) for part in importances) / sum(part.numel() for part in importances)
