"""From a directory of runs to a Study: read every result.json, group, average over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechint.comparison.identity import Options, key_of, options, shown, telling
from mechint.comparison.study import (
    BYTES_PER_ELEMENT,
    Study,
    StudyGroup,
    StudyPoint,
    StudyRun,
    UnfinishedRun,
)
from mechint.errors import UserError, one_line
from mechint.metrics.agreement import Agreement
from mechint.metrics.overlap import same_shapes
from mechint.results.find import newest_of_each, run_directories, summary_note
from mechint.results.result import Result, UnreadableResult
from mechint.results.run_files import read_masks

# Achieved sparsities that agree to so many decimals are one point.
DECIMALS = 6


@dataclass(frozen=True)
class _Finished:
    """A finished run as it is grouped."""

    run: StudyRun
    checkpoint: Mapping[str, Any]
    options: Options


def read_study(root: str | Path) -> Study:
    """Every run below `root`, from its result.json alone.

    Raises UserError where there is no directory, or no finished run in it.
    """
    root = Path(root)
    unfinished: list[UnfinishedRun] = []
    done: list[tuple[Path, Result]] = []
    for directory in run_directories(root):
        _sort_in(root, directory, done, unfinished)
    notes = [note for directory, result in done if (note := summary_note(directory, result))]
    results = {directory: result for directory, result in done if not summary_note(directory, result)}
    kept, repeated = newest_of_each(list(results.items()))
    notes += repeated
    finished = [_finished(root, directory, results[directory]) for directory in kept]
    if not finished:
        listed = f" ({len(unfinished)} not finished or unreadable)" if unfinished else ""
        raise UserError(f"no finished run below {root}{listed}; give the output directory of a sweep")
    groups = _groups(finished, root, notes)
    return Study(root, tuple(groups), tuple(unfinished), tuple(_flags(finished)), tuple(notes))


def _sort_in(
    root: Path, directory: Path, done: list[tuple[Path, Result]], unfinished: list[UnfinishedRun]
) -> None:
    """Put a run among the finished or the unfinished ones."""
    name = str(directory.relative_to(root))
    try:
        result = Result.read(directory)
    except (OSError, UnreadableResult) as error:
        unfinished.append(UnfinishedRun(name, "unreadable", one_line(error, 200)))
        return
    if result.status != "done":
        status = result.true_status
        started = f"started {result.started}, did not end" if status in ("running", "died") else ""
        unfinished.append(UnfinishedRun(name, status, one_line(result.error or started, 200)))
    elif result.lacking or not result.measured or result.sparsity.target is None:
        unfinished.append(
            UnfinishedRun(name, "unreadable", "result.json lacks metrics or the target sparsity")
        )
    else:
        done.append((directory, result))


def _finished(root: Path, directory: Path, result: Result) -> _Finished:
    metrics, channels, sparsity = result.metrics, result.channels, result.sparsity
    assert sparsity.target is not None, "runs without a target are left out"
    run = StudyRun(
        directory=str(directory.relative_to(root)),
        digest=result.config_digest or "",
        finished=result.finished or "",
        seed=result.seed,
        target=sparsity.target,
        sparsity=sparsity.achieved,
        kept_channels=channels.kept,
        total_channels=channels.total,
        loss=metrics.masked.loss,
        dense_loss=metrics.dense.loss,
        empty_loss=metrics.empty.loss,
        loss_degradation_percent=result.loss_degradation_percent,
        kl=metrics.masked.kl,
        faithfulness=result.faithfulness,
        evaluation_digest=result.dataset.evaluation_digest or "",
    )
    return _Finished(run, result.checkpoint.as_json(), options(result))


def _groups(finished: Sequence[_Finished], root: Path, notes: list[str]) -> list[StudyGroup]:
    """One group for each checkpoint and set of options, in the order in which they were found."""
    members: dict[str, list[_Finished]] = {}
    for entry in finished:
        weights = str(entry.checkpoint.get("sha256") or entry.checkpoint.get("source"))
        members.setdefault(key_of(weights, entry.options), []).append(entry)
    firsts = [group[0] for group in members.values()]
    return [
        StudyGroup(
            label=label,
            checkpoint=str(first.checkpoint.get("name") or first.checkpoint.get("source")),
            method=str(first.options.get("method")),
            points=tuple(_points([entry.run for entry in group], root, notes)),
            dense_loss=first.run.dense_loss,
            empty_loss=first.run.empty_loss,
            dense_kv_bytes_per_token=BYTES_PER_ELEMENT * first.run.total_channels,
        )
        for label, first, group in zip(_labels(firsts), firsts, members.values(), strict=True)
    ]


def _points(runs: Sequence[StudyRun], root: Path, notes: list[str]) -> list[StudyPoint]:
    """Runs of one group by achieved sparsity, ascending."""
    at: dict[float, list[StudyRun]] = {}
    for run in runs:
        at.setdefault(round(run.sparsity, DECIMALS), []).append(run)
    return [
        StudyPoint(
            sparsity=sparsity,
            target=here[0].target,
            kv_bytes_per_token=BYTES_PER_ELEMENT * sum(run.kept_channels for run in here) / len(here),
            runs=tuple(here),
            agreement=_agreement(here, root, notes),
        )
        for sparsity, here in sorted(at.items())
    ]


def _agreement(runs: Sequence[StudyRun], root: Path, notes: list[str]) -> Agreement | None:
    """Agreement of the masks of one point; where one cannot be read, a note says so."""
    if len(runs) < 2:
        return None
    try:
        masks = [list(read_masks(root / run.directory).values()) for run in runs]
    except UserError as error:
        notes.append(f"The overlap of {len(runs)} masks is unknown: {error}.")
        return None
    if not all(same_shapes(masks[0], of_run) for of_run in masks):
        notes.append(f"The overlap of {len(runs)} masks is unknown: they are of models of different shapes.")
        return None
    return Agreement.of(masks)


def _labels(firsts: Sequence[_Finished]) -> list[str]:
    """The checkpoint's name, with its digest where two have one name, and the options that differ."""
    names = [str(entry.checkpoint.get("name") or entry.checkpoint.get("source")) for entry in firsts]
    weights = [str(entry.checkpoint.get("sha256") or "")[:8] for entry in firsts]
    shared = {
        name for name in names if len({w for n, w in zip(names, weights, strict=True) if n == name}) > 1
    }
    heads = [f"{name} {w}" if name in shared else name for name, w in zip(names, weights, strict=True)]
    keys = telling([entry.options for entry in firsts], weights)
    return [
        " · ".join([head, *(shown(key, entry.options.get(key)) for key in keys)])
        for head, entry in zip(heads, firsts, strict=True)
    ]


def _flags(finished: Sequence[_Finished]) -> list[str]:
    """What makes curves hard to compare with each other."""
    data = {entry.run.evaluation_digest: str(entry.options.get("data")) for entry in finished}
    found = []
    if len(data) > 1:
        told = "; ".join(f"{name} ({digest[:8]})" for digest, name in data.items())
        found.append(
            "DIFFERENT EVALUATION DATA: curves of different data must not be compared with each other; "
            f"runs are never averaged across them ({told})."
        )
    without = [entry.run.directory for entry in finished if entry.run.loss is None]
    if without:
        told = ", ".join(without[:5])
        found.append(f"No finite loss in {len(without)} finished runs, so they are in no curve: {told}.")
    units = {str(entry.options.get("unit")) for entry in finished}
    if len(units) > 1:
        told = ", ".join(sorted(units))
        found.append(f"Different units ({told}): sparsity counts units, so compare them by KV bytes.")
    return found
