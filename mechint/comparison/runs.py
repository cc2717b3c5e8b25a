"""The runs that are compared: found below directories, and laid out as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mechint.comparison.identity import basis_in_words
from mechint.errors import one_line
from mechint.results import RunFiles
from mechint.results.find import newest_of_each, run_directories, summary_note
from mechint.results.result import Result, UnreadableResult

# bf16 or fp16 caches; stated wherever bytes are shown.
BYTES_PER_ELEMENT = 2

# Sparsities that agree to so many decimals are the same.
DECIMALS = 6

# Between the gates that failed, in a table.
BETWEEN_GATES = "; "

NUMBERS = ("loss", "loss_degradation_percent", "kl", "faithfulness", "top1_agreement")
# Of runs on tasks: the faithfulness of the logit difference, where `faithfulness` is that of the loss.
OF_TASK = "task_faithfulness"
WITH_ERROR = ("loss", "kl", "faithfulness", "top1_agreement")


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without usable numbers. status: failed, interrupted, died, running, unreadable. reason: one line."""

    directory: Path
    status: str
    reason: str


@dataclass
class Found:
    """What lies in or below a directory.

    sums: finished runs that sum up others, which count instead. notes: runs that are left out, a sentence each.
    """

    finished: dict[Path, Result] = field(default_factory=dict)
    sums: dict[Path, Result] = field(default_factory=dict)
    unfinished: list[UnfinishedRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def searched(result: Result) -> bool:
    """Whether this is the result of a search for the smallest mask that reaches a target."""
    return result.target is not None and result.target.kind != "sparsity"


def find_runs(root: Path, searches: bool) -> Found:
    """Every run in or below `root`, from its result.json alone.

    searches: whether of a search its result counts; else the masks that it tried do. Raises UserError where `root` is
    no directory.
    """
    found = Found()
    done: list[tuple[Path, Result]] = []
    for directory in run_directories(root):
        try:
            result = Result.read(directory)
        except (OSError, UnreadableResult) as error:
            found.unfinished.append(UnfinishedRun(directory, "unreadable", one_line(error, 200)))
            continue
        if result.status != "done":
            status = result.true_status
            started = f"started {result.started}, did not end" if status in ("running", "died") else ""
            found.unfinished.append(UnfinishedRun(directory, status, one_line(result.error or started, 200)))
        elif result.lacking or not result.measured or result.sparsity.target is None:
            reason = "result.json lacks metrics or the target sparsity"
            found.unfinished.append(UnfinishedRun(directory, "unreadable", reason))
        else:
            done.append((directory, result))
    if searches:
        tops = {directory for directory, result in done if searched(result)}
        done = [(directory, result) for directory, result in done if not tops & set(directory.parents)]
    counted = []
    for directory, result in done:
        note = None if searches and searched(result) else summary_note(directory, result)
        if note:
            found.notes.append(note)
            found.sums[directory] = result
        else:
            counted.append((directory, result))
    chosen, repeated = newest_of_each(counted)
    found.notes += repeated
    results = dict(done)
    found.finished = {directory: results[directory] for directory in chosen}
    return found


def runs_frame(results: Iterable[Result]) -> pd.DataFrame:
    """The table of runs, one row each, in the given order.

    sparsity, target: of units, achieved and asked for. kept, total: units. kv_bytes, dense_kv_bytes: of a cache per
    token, with what the mask keeps and with everything; equal keys and values count once. verdict: GO or NO_GO, None
    without gates; failed_gates: those that failed, as one text. loss, kl, ... and their standard errors loss_se, ...:
    of the masked model, as in result.json; NaN where they are not known. task_faithfulness: of the logit difference.
    """
    return pd.DataFrame([_row(result) for result in results])


def _row(result: Result) -> dict[str, Any]:
    metrics, sparsity, target = result.metrics, result.sparsity, result.target
    cached = result.channels.stored or result.channels
    numbers = {
        "target": None if sparsity.target is None else round(sparsity.target, DECIMALS),
        "sparsity": round(sparsity.achieved, DECIMALS),
        "dense_loss": metrics.dense.loss,
        "dense_loss_se": metrics.dense.loss_se,
        "empty_loss": metrics.empty.loss,
        "empty_kl": metrics.empty.kl,
    }
    for name in (*NUMBERS, *(f"{name}_se" for name in WITH_ERROR)):
        numbers[name] = getattr(metrics.masked if hasattr(metrics.masked, name) else result, name)
    numbers[OF_TASK] = None if result.circuit is None else result.circuit.faithfulness
    return {
        "seed": result.seed,
        "checkpoint": result.checkpoint.label,
        "sha256": result.checkpoint.sha256 or result.checkpoint.source,
        "method": result.mask.method,
        "unit": result.mask.unit,
        "basis": basis_in_words(result.basis),
        "kept": sparsity.kept,
        "total": sparsity.total,
        "kv_bytes": BYTES_PER_ELEMENT * cached.kept,
        "dense_kv_bytes": BYTES_PER_ELEMENT * cached.total,
        "evaluation_digest": result.dataset.evaluation_digest or "",
        "searched_for": target.title if searched(result) and target else None,
        "verdict": None if result.verdict is None else result.verdict.overall,
        "failed_gates": None if result.verdict is None else BETWEEN_GATES.join(result.verdict.failed_gates),
        **{name: float("nan") if value is None else float(value) for name, value in numbers.items()},
    }


def gates_in_words(table: pd.DataFrame) -> str:
    """How the gates of a table's runs went: 'NO_GO: kl <= 0.1', or of several '2 GO, 1 NO_GO: kl <= 0.1 (1)'.

    Nothing where none has gates.
    """
    judged = table[table["verdict"].notna()]
    if judged.empty:
        return ""
    counts = judged["verdict"].value_counts()
    failed = judged["failed_gates"].str.split(BETWEEN_GATES).explode()
    gates = failed[failed != ""].value_counts(sort=False)
    if len(judged) == 1:
        words, listed = counts.index[0], list(gates.index)
    else:
        words = ", ".join(f"{counts[name]} {name}" for name in ("GO", "NO_GO") if name in counts)
        listed = [f"{gate} ({count})" for gate, count in gates.items()]
    return f"{words}: {', '.join(listed)}" if listed else words


def channels_frame(runs: Sequence[RunFiles]) -> pd.DataFrame:
    """The tables of channels of several runs below each other; `run` is a run's number here, `rank` its importance as
    a share of the run's channels that are no more important, in (0, 1].
    """
    table = pd.concat(
        [run.channels_frame().assign(run=number) for number, run in enumerate(runs)], ignore_index=True
    )
    return table.assign(rank=table.groupby("run")["importance"].rank(pct=True))


def layers_frame(channels: pd.DataFrame) -> pd.DataFrame:
    """The table of layers: rows by (layer, kind "k", "v" or "kv", run); columns kept, total, sparsity and mean rank."""
    both = pd.concat([channels, channels.assign(kind="kv")])
    table = both.groupby(["layer", "kind", "run"]).agg(
        kept=("kept", "sum"), total=("kept", "size"), rank=("rank", "mean")
    )
    return table.assign(sparsity=1 - table["kept"] / table["total"])


def kept_frame(channels: pd.DataFrame) -> pd.DataFrame:
    """The masks: rows by (layer, kind, head, channel), a column for each run."""
    index = ["layer", "kind", "head", "channel"]
    return channels.set_index([*index, "run"])["kept"].unstack("run")


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON holds them: plain numbers, null where there is none."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows
