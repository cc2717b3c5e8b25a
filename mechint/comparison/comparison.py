"""What a comparison of variants is: plain values that text, tables and figures are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from mechint.metrics.overlap import Overlap
from mechint.metrics.spread import Spread
from mechint.metrics.statistics import Effect, Verdict
from mechint.results import Result, RunFiles


@dataclass(frozen=True)
class VariantLayer:
    """One attention layer of a variant, over its runs. Everything is counted in channels, not in units.

    index: the layer's number in the model. depth: its relative depth, (position + 0.5) / L, in (0, 1).
    sparsity, k_sparsity, v_sparsity: fraction of channels removed. importance, ...: mean over the channels of
    the layer; importances are scaled within a run, so they tell layers of one run apart and not runs.
    k_kept, v_kept: channels kept, of k_total and v_total.
    """

    index: int
    name: str
    depth: float
    sparsity: Spread
    k_sparsity: Spread
    v_sparsity: Spread
    importance: Spread
    k_importance: Spread
    v_importance: Spread
    kept: Spread
    k_kept: Spread
    v_kept: Spread
    k_total: int
    v_total: int

    @property
    def total(self) -> int:
        """Channels of the layer, K and V together."""
        return self.k_total + self.v_total


@dataclass(frozen=True)
class Variant:
    """One of the compared things: a run, or several runs that differ in the seed.

    metrics: name -> numbers over the runs; the names are those of METRICS, absent where no run has the number
    (runs of the replaced tool have none at all). layers: by layer index. sparsity, ...: fraction of channels
    removed. quoted: what the replaced tool reported, each a sentence with its warning; empty for runs of this
    package.
    """

    name: str
    runs: tuple[RunFiles, ...]
    metrics: Mapping[str, Spread]
    layers: tuple[VariantLayer, ...]
    sparsity: Spread
    k_sparsity: Spread
    v_sparsity: Spread
    quoted: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seed of each run, None where it is not known."""
        return tuple(run.result.seed for run in self.runs)

    @property
    def first(self) -> Result:
        """result.json of the first run: what all runs of a variant share can be read from it."""
        return self.runs[0].result


@dataclass(frozen=True)
class Metric:
    """A number that variants are compared by.

    better: which direction is better. seeded: whether it varies with the seed of mask learning; the dense
    model does not.
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
    Metric("top1_agreement", "top-1 agreement with dense", "", "higher", 3),
)


@dataclass(frozen=True)
class MetricDifference:
    """variant - baseline of one metric, as difference of the means over runs.

    effect: with its interval. p: adjusted for everything that is claimed of this variant (Holm); None where there is no
    test. verdict: what may be claimed.
    """

    metric: Metric
    baseline: Spread
    variant: Spread
    effect: Effect
    p: float | None
    verdict: Verdict

    @property
    def difference(self) -> float:
        """Mean of the variant minus mean of the baseline."""
        return self.variant.mean - self.baseline.mean


@dataclass(frozen=True)
class PlaceDelta:
    """variant - baseline at one place: a layer of the baseline, or a third of the layers.

    title: "layer 3", or "early layers 0-1". depth: middle of the place, 0 to 1. sparsity, k_sparsity,
    v_sparsity: differences of the fraction of channels removed (positive: the variant is sparser). kept: difference in
    kept channels; None where the layers' shapes differ. effect, verdict: of the difference in sparsity, as in
    MetricDifference.
    """

    title: str
    depth: float
    sparsity: float
    k_sparsity: float
    v_sparsity: float
    kept: float | None
    effect: Effect
    verdict: Verdict


@dataclass(frozen=True)
class Difference:
    """One variant against the baseline.

    metrics: only those that both sides have. layers: one entry per layer of the baseline; where the variant
    has another number of layers, its side is the mean over the same stretch of relative depth. thirds: early,
    middle, late; empty below three layers. overlap: None where channels cannot be matched; `no_overlap` then
    says why. by_depth: depths differ. kinds: verdicts for the shares of K and of V that are kept.
    """

    variant: str
    metrics: Mapping[str, MetricDifference]
    layers: tuple[PlaceDelta, ...]
    thirds: tuple[PlaceDelta, ...]
    overlap: Overlap | None
    no_overlap: str
    by_depth: bool
    kinds: Mapping[str, Verdict]


@dataclass(frozen=True)
class Comparison:
    """Two or more variants and what tells them apart.

    variants: in the order given. baseline: name of the one that all others are held against. differences:
    every other variant's name -> Difference. flags: what makes the numbers hard or impossible to compare, one
    sentence each, the gravest first; shown before anything else. notes: smaller remarks (runs left out,
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


class ComparisonFigure(Protocol):
    """One kind of picture of a comparison."""

    def draw(self, comparison: Comparison, directory: Path, dpi: int) -> list[Path]:
        """Write the picture into `directory` and return its path."""
        ...
