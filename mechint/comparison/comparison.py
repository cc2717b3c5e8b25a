"""What a comparison of variants is: plain values that text, tables and figures are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechint.comparison.runs import (
    OF_TASK,
    channels_frame,
    gates_in_words,
    kept_frame,
    layers_frame,
    runs_frame,
)
from mechint.imports.old_results import quotations
from mechint.metrics.overlap import Overlap
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import Effect, Verdict
from mechint.results import Result, RunFiles

Kind = Literal["kv", "k", "v"]
KINDS: tuple[Kind, ...] = ("kv", "k", "v")
Bound = Literal["", "at most", "more than"]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """A number that variants are compared by.

    better: which direction is better. digits: at most. seeded: whether it varies with the seed of mask learning; the
    dense model does not.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"]
    digits: int
    seeded: bool = True


# In the order in which they are shown; comparable on equal evaluation data only.
METRICS = (
    Metric("loss", "masked loss", "nats/token", "lower", 4),
    Metric("dense_loss", "dense loss", "nats/token", "lower", 4, seeded=False),
    Metric("loss_degradation_percent", "loss degradation against own dense model", "%", "lower", 2),
    Metric("kl", "KL(dense || masked)", "nats/token", "lower", 4),
    Metric("faithfulness", "faithfulness", "", "higher", 3),
    Metric(OF_TASK, "faithfulness of the logit difference", "", "higher", 3),
    Metric("top1_agreement", "top-1 agreement with dense", "", "higher", 3),
)


@dataclass(frozen=True)
class Needed:
    """The share of its units that a variant needs for a target, over its seeds.

    between: the largest measured share that misses the target and the smallest that reaches it, over all seeds; None
    where masks were searched for this target. bound: "at most" or "more than" where no two measured shares enclose the
    target, so that `share` is only the nearest one. achieved: on evaluation data, by searched masks.
    """

    target: str
    share: Spread
    units: float
    total: int
    between: tuple[float, float] | None = None
    bound: Bound = ""
    achieved: Spread | None = None


@dataclass(frozen=True)
class Variant:
    """One of the compared things: a run, or several runs that differ in the seed.

    runs: those that are compared, all of one target. every_run: also those of other sparsities. needed: None where it
    is not known. sums: results that sum up some of the runs, as the consensus of seeds does.
    """

    name: str
    runs: tuple[RunFiles, ...]
    every_run: tuple[RunFiles, ...]
    needed: Needed | None = None
    sums: tuple[Result, ...] = ()

    @property
    def gates(self) -> str:
        """How the gates of its runs went, in words; nothing without gates."""
        return gates_in_words(runs_frame([*(run.result for run in self.runs), *self.sums]))

    @cached_property
    def numbers(self) -> pd.DataFrame:
        """The table of runs."""
        return runs_frame(run.result for run in self.runs)

    @cached_property
    def channels(self) -> pd.DataFrame:
        """The table of channels, with `run` the row of `numbers`."""
        return channels_frame(self.runs)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """The table of layers, by (layer, kind, run)."""
        return layers_frame(self.channels)

    @cached_property
    def kept(self) -> pd.DataFrame:
        """The masks, by (layer, kind, head, channel)."""
        return kept_frame(self.channels)

    @cached_property
    def indices(self) -> list[int]:
        """The layers' numbers in the model."""
        return [int(index) for index in self.layers.index.unique("layer")]

    @property
    def depths(self) -> np.ndarray:
        """The layers' relative depths, (position + 0.5) / L, in (0, 1)."""
        return (np.arange(len(self.indices)) + 0.5) / len(self.indices)

    @property
    def first(self) -> Result:
        """result.json of the first run: what all runs of a variant share can be read from it."""
        return self.runs[0].result

    @property
    def quoted(self) -> tuple[str, ...]:
        """What the replaced tool reported, each a sentence with its warning; empty for runs of this package."""
        return tuple(dict.fromkeys(sentence for run in self.runs for sentence in quotations(run.result)))

    def spread(self, name: str) -> Spread | None:
        """A column of the table of runs; None where no run has a number."""
        return Spread.of(self.numbers[name]) if name in self.numbers else None

    def error(self, name: str) -> float | None:
        """Standard error of a number that the evaluation data give it: of one run, root mean square over runs."""
        errors = Spread.of(self.numbers[f"{name}_se"] ** 2) if f"{name}_se" in self.numbers else None
        return None if errors is None else float(np.sqrt(errors.mean))

    @cached_property
    def counts(self) -> dict[Kind, tuple[Counts, Counts]]:
        """Channels kept and channels in all, [layers, runs] each."""
        tables = {kind: self.layers.xs(kind, level="kind").unstack("run") for kind in KINDS}
        return {kind: (table["kept"].to_numpy(), table["total"].to_numpy()) for kind, table in tables.items()}

    def weights(self, layers: Mapping[int, float] | None) -> NDArray[np.float64]:
        """A weight for each layer, [layers], from those by index; 0 elsewhere. None: 1 for all."""
        return np.array([1.0 if layers is None else layers.get(index, 0.0) for index in self.indices])

    def sparsity(self, kind: Kind = "kv", layers: Mapping[int, float] | None = None) -> Spread:
        """Fraction of channels removed, for each run; layers count by their channels and weights (None: all by 1)."""
        (kept, total), weights = self.counts[kind], self.weights(layers)
        return Spread(tuple((1 - weights @ kept / (weights @ total)).tolist()))

    def per_layer(self, column: str, kind: Kind) -> pd.DataFrame:
        """mean, min and max over runs of a column of the table of layers, by layer."""
        return self.layers[column].xs(kind, level="kind").groupby(level="layer").agg(["mean", "min", "max"])


@dataclass(frozen=True)
class Claim:
    """variant - baseline of one number, as difference of the means over runs.

    effect: with its interval. error: standard error of the difference; of runs and evaluation data, or with a single
    run on a side of evaluation data alone. p: adjusted for everything that is claimed of this variant (Holm); None
    where there is no test. verdict: what may be claimed.
    """

    baseline: Spread
    variant: Spread
    effect: Effect
    error: float | None
    p: float | None = None
    verdict: Verdict = "not tested"

    @property
    def difference(self) -> float:
        """Mean of the variant minus mean of the baseline."""
        return self.variant.mean - self.baseline.mean

    @property
    def distinguished(self) -> bool:
        """Whether a difference may be claimed."""
        return self.verdict in ("higher", "lower")


@dataclass(frozen=True)
class Place:
    """Sparsity at one place: a layer of the baseline, a third of the layers, or the whole model.

    title: "layer 3", "early layers 0–1". sparsity: of channels, by kind (a positive difference: the variant is
    sparser); of places only K and V together are tested, of the whole only K and V alone. kept: difference in kept
    channels; None where the layers' shapes differ.
    """

    title: str
    sparsity: Mapping[Kind, Claim]
    kept: float | None

    @property
    def claim(self) -> Claim:
        """K and V together."""
        return self.sparsity["kv"]


@dataclass(frozen=True)
class Difference:
    """One variant against the baseline.

    metrics: those that both sides have, by name, and "units_needed" where that is known. whole, layers, thirds:
    sparsity of the model, of every layer of the baseline, and of early, middle and late layers (empty below three
    layers); where the variant has another number of layers, its side is the mean over the same stretch of relative
    depth, and `by_depth` is true. overlap: None where channels cannot be matched; `no_overlap` then says why.
    """

    variant: str
    metrics: Mapping[str, Claim]
    whole: Place
    layers: tuple[Place, ...]
    thirds: tuple[Place, ...]
    overlap: Overlap | None
    no_overlap: str
    by_depth: bool


@dataclass(frozen=True)
class Comparison:
    """Two or more variants and what tells them apart.

    variants: in the order given. baseline: name of the one that all others are held against. differences:
    every other variant's name -> Difference. flags: what makes the numbers hard or impossible to compare, each
    "title: sentence", the gravest first; shown before anything else. notes: smaller remarks (runs left out,
    duplicates). comparable_loss: False where variants were measured on different evaluation data.
    """

    variants: tuple[Variant, ...]
    baseline: str
    differences: Mapping[str, Difference]
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    comparable_loss: bool

    def __getitem__(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)

    @property
    def others(self) -> Sequence[Variant]:
        """All but the baseline."""
        return [variant for variant in self.variants if variant.name != self.baseline]


class ComparisonFigure(Protocol):
    """One kind of picture of a comparison."""

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Write the picture into `directory` and return its path."""
        ...
