"""A tree of runs: points on sparsity curves, grouped by checkpoint and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pandas as pd

from mechint.comparison.identity import Options, key_of, options, shown, telling
from mechint.comparison.runs import NUMBERS, OF_TASK, UnfinishedRun, find_runs, gates_in_words, runs_frame
from mechint.errors import UserError
from mechint.metrics.agreement import Agreement
from mechint.metrics.spread import Spread
from mechint.results.result import Result
from mechint.results.run_files import read_masks


@dataclass(frozen=True)
class Study:
    """Every run below a directory.

    runs: the table of finished runs, with `directory` (relative to root), `config_digest` and `group`: the label of
    the curve, short and unique, of runs of one checkpoint with one set of options apart from seed and target sparsity.
    agreements: of the seeds' masks at one point, by (group, sparsity); absent for a single run, for directions of bases
    of their own, and where masks are missing. judged: the table of runs that sum up others, of those with gates, with
    `directory`. flags: shown first, as in Comparison. notes: smaller remarks.
    """

    root: Path
    runs: pd.DataFrame
    agreements: Mapping[tuple[str, float], Agreement] = field(default_factory=dict)
    unfinished: tuple[UnfinishedRun, ...] = ()
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    judged: pd.DataFrame | None = None

    @cached_property
    def groups(self) -> pd.DataFrame:
        """One row per curve, by label, in the order in which they were found: what all its runs share."""
        columns = [
            "checkpoint",
            "method",
            "basis",
            "unit",
            "dense_loss",
            "empty_loss",
            "empty_kl",
            "dense_kv_bytes",
        ]
        return self.runs.groupby("group", sort=False)[[*columns, "total"]].first()

    @cached_property
    def points(self) -> pd.DataFrame:
        """One row per (group, sparsity): n runs, their seeds, kept units, bytes, and of every number its mean, standard
        deviation `_sd`, lowest `_low`, highest `_high` and the standard error of the evaluation data `_se` (root mean
        square over runs); `gates`, in words, where any run has some; groups in their order, sparsities ascending.
        """
        rows = []
        for group in self.groups.index:
            for sparsity, runs in self.runs[self.runs["group"] == group].groupby("sparsity"):
                rows.append({"group": group, "sparsity": sparsity, **_point(runs, self.on_tasks)})
                found = self.agreements.get((group, float(sparsity)))
                for name in ("iou", "chance"):
                    spread: Spread | None = getattr(found, name, None)
                    rows[-1]["iou" if name == "iou" else "iou_chance"] = spread and spread.mean
                if self.has_gates:
                    rows[-1]["gates"] = gates_in_words(runs)
        return pd.DataFrame(rows)

    @property
    def on_tasks(self) -> bool:
        """Whether any run of a curve was measured as the circuit of a task."""
        return bool(self.runs[OF_TASK].notna().any())

    @property
    def has_gates(self) -> bool:
        """Whether any run of a curve was judged by gates."""
        return bool(self.runs["verdict"].notna().any())

    def curve(self, group: str) -> pd.DataFrame:
        """The points of one curve, by sparsity."""
        return self.points[self.points["group"] == group]


def _point(runs: pd.DataFrame, on_tasks: bool) -> dict[str, object]:
    seeds = " ".join("?" if pd.isna(seed) else f"{seed:.0f}" for seed in runs["seed"])
    row: dict[str, object] = {
        "target": runs["target"].iloc[0],
        "kept": runs["kept"].iloc[0],
        "kv_bytes_per_token": runs["kv_bytes"].mean(),
        "n": len(runs),
        "seeds": seeds,
    }
    for name in (*NUMBERS, *([OF_TASK] if on_tasks else [])):
        values = runs[name]
        row |= {name: values.mean(), f"{name}_sd": values.std()}
        row |= {f"{name}_low": values.min(), f"{name}_high": values.max()}
        if f"{name}_se" in runs:
            row[f"{name}_se"] = (runs[f"{name}_se"] ** 2).mean() ** 0.5
    return row


class StudyFigure(Protocol):
    """One kind of picture of a study."""

    def draw(self, study: Study, directory: Path, dpi: int) -> list[Path]:
        """Write the picture into `directory` and return its path; nothing where there is nothing to show."""
        ...


def read_study(root: str | Path) -> Study:
    """Every run below `root`, from its result.json alone.

    Raises UserError where there is no directory, or no finished run in it.
    """
    root = Path(root)
    found = find_runs(root, searches=False)
    unfinished = tuple(
        UnfinishedRun(run.directory.relative_to(root), run.status, run.reason) for run in found.unfinished
    )
    if not found.finished:
        listed = f" ({len(unfinished)} not finished or unreadable)" if unfinished else ""
        raise UserError(f"no finished run below {root}{listed}; give the output directory of a sweep")
    results = list(found.finished.values())
    runs = runs_frame(results).assign(
        directory=[str(path.relative_to(root)) for path in found.finished],
        config_digest=[result.config_digest or "" for result in results],
        group=_labels(results),
    )
    order = runs["group"].map({label: place for place, label in enumerate(dict.fromkeys(runs["group"]))})
    runs = runs.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    agreements, notes = _agreements(root, runs)
    flags, told = tuple(_flags(runs, results)), (*found.notes, *notes)
    return Study(root, runs, agreements, unfinished, flags, told, _judged(root, found.sums))


def _judged(root: Path, sums: Mapping[Path, Result]) -> pd.DataFrame | None:
    """The table of the runs with gates among those that sum up others; None where there is none."""
    judged = {path: one for path, one in sums.items() if one.verdict is not None and one.verdict.overall}
    if not judged:
        return None
    return runs_frame(judged.values()).assign(directory=[str(path.relative_to(root)) for path in judged])


def _labels(results: Sequence[Result]) -> list[str]:
    """A label for every run: the checkpoint's name, with its digest where two have one name, and the options that
    differ; the same for runs that differ in nothing but seed and sparsity.
    """
    weights = [result.checkpoint.sha256 or result.checkpoint.source for result in results]
    every = [options(result) for result in results]
    keys = [key_of(digest, entry) for digest, entry in zip(weights, every, strict=True)]
    firsts: dict[str, tuple[str, str, Options]] = {}
    for key, digest, entry, result in zip(keys, weights, every, results, strict=True):
        firsts.setdefault(key, (result.checkpoint.label, digest[:8], entry))
    names = {
        name: len({digest for other, digest, _ in firsts.values() if other == name})
        for name, *_ in firsts.values()
    }
    heads = [f"{name} {digest}" if names[name] > 1 else name for name, digest, _ in firsts.values()]
    chosen = telling([entry for *_, entry in firsts.values()], [digest for _, digest, _ in firsts.values()])
    labels = {
        key: " · ".join([head, *(shown(name, entry.get(name)) for name in chosen)])
        for (key, (*_, entry)), head in zip(firsts.items(), heads, strict=True)
    }
    return [labels[key] for key in keys]


def _agreements(root: Path, runs: pd.DataFrame) -> tuple[dict[tuple[str, float], Agreement], list[str]]:
    """Agreement of the masks of every point; where masks cannot be read, a note says so."""
    found: dict[tuple[str, float], Agreement] = {}
    notes = []
    for (group, sparsity), here in runs.groupby(["group", "sparsity"], sort=False):
        if len(here) < 2 or set(here["basis"]) != {"channels"}:
            continue
        try:
            masks = [list(read_masks(root / directory).values()) for directory in here["directory"]]
        except UserError as error:
            notes.append(f"The overlap of {len(here)} masks is unknown: {error}.")
            continue
        shapes = {tuple((*m.k_mask.shape, *m.v_mask.shape) for m in of_run) for of_run in masks}
        if len(shapes) > 1:
            notes.append(
                f"The overlap of {len(here)} masks is unknown: they are of models of different shapes."
            )
            continue
        found[str(group), float(sparsity)] = Agreement.of(masks)
    return found, notes


def _flags(runs: pd.DataFrame, results: Sequence[Result]) -> list[str]:
    """What makes curves hard to compare with each other."""
    data = {result.dataset.evaluation_digest or "": str(result.dataset.name) for result in results}
    found = []
    if len(data) > 1:
        told = "; ".join(f"{name} ({digest[:8]})" for digest, name in data.items())
        found.append(
            "Different evaluation data: curves of different data must not be compared with each other; "
            f"runs are never averaged across them ({told})."
        )
    without = runs["directory"][runs["loss"].isna()].tolist()
    if without:
        told = ", ".join(without[:5])
        found.append(f"No finite loss: {len(without)} finished runs are in no curve ({told}).")
    units = sorted(set(runs["unit"]))
    if len(units) > 1:
        told = ", ".join(units)
        found.append(f"Different units: sparsity counts units ({told}), so compare them by KV bytes.")
    return found
