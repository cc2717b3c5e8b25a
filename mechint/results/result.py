"""The content of result.json, typed: what a run was, what it found and what it cost.

Analysis writes one `Result` and every reader gets one. A section that a run has not reached yet is left out of the
file; a reader then sees its defaults. Fields that this version does not know are kept. In memory a number may be NaN
or infinite; in the file it is null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from mechint.errors import one_line
from mechint.results.circuit import CircuitInfo, GateResult, RivalInfo, TaskInfo
from mechint.results.section import Section
from mechint.runtime.files import parse_json, read_text, write_json
from mechint.runtime.processes import has_died

# The one file of a run that other programs read.
RESULT = "result.json"
SCHEMA_VERSION = 3

# `died` is never written: it is a run that says `running` and whose process is gone.
Status = Literal["running", "done", "failed", "interrupted", "died"]

# The four models that every run measures: all units, none, the mask's, and exactly those that the mask removed.
ModelName = Literal["dense", "empty", "masked", "complement"]
MODELS: tuple[ModelName, ...] = ("dense", "empty", "masked", "complement")

# How much of what the dense model does is done by some of its units alone.
Grade = Literal["nearly all", "most", "part", "little"]
GRADES: tuple[Grade, ...] = ("nearly all", "most", "part", "little")

# The sections that every finished run has.
NEEDED = ("checkpoint", "mask", "sparsity", "channels", "layers", "metrics")


class UnreadableResult(ValueError):
    """A result.json that says nothing: damaged, cut short, foreign or too new. The text is one line."""


class CheckpointInfo(Section):
    """Which weights the numbers belong to, and the attention's shape (lists where layers differ).

    tied_kv_layers: numbers of the layers whose keys and values are the same. stated_loss: the validation loss that the
    file itself names, in nats per token.
    """

    source: str = ""
    name: str | None = None
    sha256: str | None = None
    format: str | None = None
    architecture: str | None = None
    num_parameters: int | None = None
    num_layers: int | None = None
    num_query_heads: int | list[int] | None = None
    num_kv_heads: int | list[int] | None = None
    head_dim: int | list[int] | None = None
    value_dim: int | list[int] | None = None
    attention: str | None = None
    device: str | None = None
    dtype: str | None = None
    tied_kv_layers: list[int] = Field(default_factory=list)
    stated_loss: float | None = None

    @property
    def label(self) -> str:
        """The model's short name, for titles."""
        return self.name or re.split(r"[/\\]", self.source.rstrip("/\\"))[-1]


class DatasetInfo(Section):
    """Which tokens the numbers belong to; counts are of predicted tokens. bos: tokens that every row begins with."""

    name: str | None = None
    tokenizer: str | None = None
    sequence_length: int | None = None
    calibration_tokens: int | None = None
    evaluation_tokens: int | None = None
    evaluation_bytes: int | None = None
    evaluation_digest: str | None = None
    bos: list[int] = Field(default_factory=list)


class MaskInfo(Section):
    """What was learned and how, in the names of the classes. importance: what the method's scores say of a unit.

    surrogate_of: the metric that the objective stands for, where it is only a surrogate.
    """

    method: str | None = None
    importance: str | None = None
    unit: str = "channel"
    scope: str | None = None
    ablation: str = "zero"
    tie_kv: bool = False
    objective: str | None = None
    surrogate_of: str | None = None
    schedule: str | None = None


class Count(Section):
    """Units or channels: how many there are, and how many of them are kept."""

    total: int = 0
    kept: int = 0


class Channels(Count):
    """Channels, K and V together and each; stored: numbers in a cache per token, where K = V once; None: as many."""

    k: Count = Field(default_factory=Count)
    v: Count = Field(default_factory=Count)
    stored: Count | None = None


class Sparsity(Channels):
    """Units, K and V together and each, and the fraction removed: asked for and reached."""

    target: float | None = None
    achieved: float = 0.0


class LayerInfo(Section):
    """One attention layer, counted in units: kept of K and V, fraction removed, mean importance."""

    name: str
    index: int
    k_kept: int = 0
    k_total: int = 0
    v_kept: int = 0
    v_total: int = 0
    sparsity: float = 0.0
    mean_importance: float | None = None


class ModelMetrics(Section):
    """What a model does on evaluation data; None where it is not known.

    loss and kl are nats per predicted token; kl is from the dense model. objective is the mean of the run's own
    objective (`mask.objective`) where that is neither of the two. Names that end in _se are standard errors,
    here and everywhere else in this file, by the bootstrap over documents of the evaluation data, or over
    sequences where documents are not known or fewer than ten, and on tasks over families of prompts that are versions
    of each other; None for a single sequence.
    """

    loss: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    objective: float | None = None
    loss_se: float | None = None
    kl_se: float | None = None
    top1_agreement_se: float | None = None
    objective_se: float | None = None
    perplexity_se: float | None = None
    bits_per_byte_se: float | None = None

    @property
    def known(self) -> bool:
        """Whether there is any number."""
        return any(value is not None for _, value in self)


class Metrics(Section):
    """What the four models do on evaluation data."""

    dense: ModelMetrics = Field(default_factory=ModelMetrics)
    empty: ModelMetrics = Field(default_factory=ModelMetrics)
    masked: ModelMetrics = Field(default_factory=ModelMetrics)
    complement: ModelMetrics = Field(default_factory=ModelMetrics)

    def __getitem__(self, name: ModelName) -> ModelMetrics:
        model: ModelMetrics = getattr(self, name)
        return model

    def values(self) -> Iterator[ModelMetrics]:
        """The four, in the order of MODELS."""
        return (self[name] for name in MODELS)


class FinishingInfo(Section):
    """What the finishing pass gained on the data that it selects on.

    objective: what it goes by; before, after: its value. tried: exchanges that were measured.
    """

    objective: str | None = None
    before: float | None = None
    after: float | None = None
    tried: int | None = None
    exchanged_units: int = 0
    tokens: int = 0
    seconds: float | None = None


class RandomMasks(Section):
    """Random masks with the same counts per layer, kind and KV head as the run's, of heads per layer and kind: what
    chance gives.

    match: `norms` where they are matched by the norms of activations as well. kl: of each of them; kl_of_mask: of the
    run's mask on the same tokens. faithfulness: likewise. kl_sd: over the masks. kl_gain: kl_mean - kl_of_mask, with
    its standard error over sequences. p: share of all masks, the run's included, whose KL is at most that of the
    run's. sequences: how many the tokens are. same: how many of the masks are the run's own, since what they have to
    match leaves no other; None in files of earlier versions. logit_diff_faithfulness: on a task that of the logit
    difference, of each mask; of their mean and of the run's mask on the same prompts with 95 % intervals over prompts.
    """

    count: int = 0
    match: str = "counts"
    tokens: int = 0
    sequences: int | None = None
    kl: list[float] = Field(default_factory=list)
    kl_mean: float | None = None
    kl_mean_se: float | None = None
    kl_sd: float | None = None
    kl_of_mask: float | None = None
    kl_of_mask_se: float | None = None
    kl_gain: float | None = None
    kl_gain_se: float | None = None
    faithfulness: list[float | None] = Field(default_factory=list)
    faithfulness_mean: float | None = None
    faithfulness_mean_se: float | None = None
    faithfulness_of_mask: float | None = None
    faithfulness_of_mask_se: float | None = None
    logit_diff_faithfulness: list[float] = Field(default_factory=list)
    logit_diff_faithfulness_mean: float | None = None
    logit_diff_faithfulness_interval: list[float] | None = None
    logit_diff_faithfulness_of_mask: float | None = None
    logit_diff_faithfulness_of_mask_interval: list[float] | None = None
    same: int | None = None
    p: float | None = None


class Leakage(Section):
    """How much of the evaluation data also occurs in the calibration data.

    shared_ngrams: of running text the share of its n-grams of tokens. shared_prompts: of a task the share of evaluation
    prompts that, clean or corrupted, are also a clean or corrupted calibration prompt.
    """

    shared_ngrams: float | None = None
    n: int | None = None
    shared_prompts: float | None = None


class BasisInfo(Section):
    """The coordinates that units are made of.

    keys, values: names of bases. where: whether directions of keys are those after or before the rotation. error: the
    largest entry of read write - 1. effective_rank: for every layer and kind, of each KV head, exp(entropy) of what its
    directions are worth; None for channels.
    """

    keys: str = "channels"
    values: str = "channels"
    where: str = "after_rope"
    error: float | None = None
    passes: int = 0
    parameters: int = 0
    effective_rank: list[dict[str, Any]] | None = None


class TargetInfo(Section):
    """What the run was asked to reach, and what its mask reaches on evaluation data.

    kind: sparsity, faithfulness or kl. metric: what is measured: nll, kl, or on tasks logit_diff; None in files of
    earlier versions. highest: the most that counts, where more is no success. interval: 95 %, by the bootstrap over
    evaluation sequences. units: how many are kept. runs: how many masks the search learned. selected: what the mask
    reaches on the `selection_sequences` calibration sequences that decided which mask it is, and that no mask learned
    on. sequences: evaluation sequences that `achieved` is measured on.
    """

    kind: str = "sparsity"
    value: float | None = None
    metric: str | None = None
    highest: float | None = None
    achieved: float | None = None
    achieved_se: float | None = None
    interval: list[float] | None = None
    units: int | None = None
    runs: int | None = None
    selected: float | None = None
    selection_sequences: int | None = None
    sequences: int | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The range that counts."""
        value = math.nan if self.value is None else self.value
        if self.kind == "kl":
            return -math.inf, value
        return value, math.inf if self.highest is None else self.highest

    @property
    def title(self) -> str:
        """'kl 0.1', 'faithfulness 0.9', 'faithfulness of the logit difference 0.9 to 1.1'."""
        if self.highest is None:
            return f"{self.kind} {self.value:g}"
        return f"{self.kind} of the logit difference {self.value:g} to {self.highest:g}"

    @property
    def in_words(self) -> str:
        """'a KL of at most 0.1', 'a faithfulness of at least 0.9', 'a faithfulness of the logit difference from 0.9 to
        1.1'.
        """
        if self.kind == "kl":
            return f"a KL of at most {self.value:g}"
        if self.highest is None:
            return f"a faithfulness of at least {self.value:g}"
        return f"a faithfulness of the logit difference from {self.value:g} to {self.highest:g}"

    @property
    def selected_reaches(self) -> bool:
        """Whether the mask reached the target on the data that it was chosen on; earlier versions did not say."""
        return self.selected is None or self.bounds[0] <= self.selected <= self.bounds[1]

    @property
    def told_apart(self) -> bool:
        """Whether the interval lies outside of the range as a whole."""
        if self.interval is None:
            return False
        (low, high), (least, most) = self.interval, self.bounds
        return high < least or low > most


class CostPart(Section):
    """One part of a run: seconds, and predicted tokens that went through the model under a mask."""

    name: str
    seconds: float | None = None
    tokens: int = 0


class Verdict(Section):
    """What the mask is worth (`mechint.results.verdict`).

    kept, removed: how much of what the dense model does the kept and the removed units do alone, by the worst measure;
    kept_by, removed_by: the measures that give it. above_chance: whether the mask beats matched random masks.
    not_learned: why it is less than what learning arrives at. gates: conditions that were fixed before the run, and
    overall GO where all of them hold; None where there are none.
    """

    kept: Grade | None = None
    kept_by: list[str] = Field(default_factory=list)
    removed: Grade | None = None
    removed_by: list[str] = Field(default_factory=list)
    above_chance: bool | None = None
    not_learned: list[str] = Field(default_factory=list)
    overall: Literal["GO", "NO_GO"] | None = None
    gates: list[GateResult] = Field(default_factory=list)

    @property
    def failed_gates(self) -> list[str]:
        """The gates that failed, as they were worded."""
        return [gate.gate for gate in self.gates if not gate.passed]

    @property
    def outcome(self) -> str:
        """'GO', 'NO_GO: kl <= 0.1, cmd <= 0.2', or nothing without gates."""
        return ": ".join(part for part in (self.overall or "", ", ".join(self.failed_gates)) if part)


class BinarizationGap(Section):
    """What making soft gates hard cost, in nats: gap is the KL of the hard mask minus that of the soft gates.

    soft_open: soft gates above 1/2, which no target has set.
    """

    soft_kl: float | None = None
    soft_kl_se: float | None = None
    soft_open: int | None = None
    gap: float | None = None
    gap_se: float | None = None


class RunCost(CostPart):
    """What one run of several took in all. name: of its directory."""

    steps: int = 0


class Cost(Section):
    """What the run took: `seconds` are those of learning, `total_seconds` those of the whole run.

    runs: what each of the runs took that it consists of, in the order in which they ran.
    """

    steps: int = 0
    batch_size: int | None = None
    tokens: int = 0
    seconds: float | None = None
    step_seconds: float | None = None
    peak_memory_bytes: int | None = None
    dense_cache_bytes: int | None = None
    total_seconds: float | None = None
    threads: int | None = None
    parts: list[CostPart] = Field(default_factory=list)
    runs: list[RunCost] = Field(default_factory=list)


class SeedAgreement(Section):
    """IoU of the channels that two seeds' masks keep, over all pairs; None where no mask keeps any.

    chance: expected of matched random masks, with the same counts in every layer, kind and KV head.
    """

    mean: float | None = None
    min: float | None = None
    max: float | None = None
    chance: float | None = None


class SingleMasks(Section):
    """What each seed's own mask does on evaluation data, in the order of the seeds.

    kl_recovered: 1 - KL(masked) / KL(empty).
    """

    kl: list[float] = Field(min_length=1)
    kl_se: list[float | None] = Field(default_factory=list)
    kl_mean: float | None = None
    kl_sd: float | None = None
    loss: list[float] = Field(min_length=1)
    loss_se: list[float | None] = Field(default_factory=list)
    faithfulness: list[float | None] = Field(default_factory=list)
    faithfulness_se: list[float | None] = Field(default_factory=list)
    kl_recovered: list[float | None] = Field(default_factory=list)
    kl_recovered_se: list[float | None] = Field(default_factory=list)


class Consensus(Section):
    """What the consensus mask does on evaluation data, and how often seeds keep its units."""

    kl: float
    kl_se: float | None = None
    loss: float
    loss_se: float | None = None
    faithfulness: float | None = None
    faithfulness_se: float | None = None
    kl_recovered: float | None = None
    kl_recovered_se: float | None = None
    units: int = 0
    unanimous_units: int = 0
    mean_frequency: float | None = None


class Rise(Section):
    """Rise of the KL over the units that were removed alone, in nats per token."""

    mean: float | None = None
    mean_se: float | None = None
    median: float | None = None
    min: float | None = None
    max: float | None = None


class NecessityInfo(Section):
    """Kept units removed one at a time: for how many the KL rises, changes within noise, or falls.

    Each rise is held against 0 by a t test over `sequences` evaluation sequences; needed and harmful are the
    discoveries at the false discovery rate `rate` over all units tested. t_quantile: times a rise's standard error,
    half the width of its 95 % interval. smallest_q, largest_q: of the units. What is known of each unit is in
    necessity.csv.
    """

    kept: int = 0
    tested: int = 0
    tokens: int = 0
    sequences: int | None = None
    seconds: float | None = None
    rate: float | None = None
    t_quantile: float | None = None
    smallest_q: float | None = None
    largest_q: float | None = None
    needed: int = 0
    unclear: int = 0
    harmful: int = 0
    rise: Rise = Field(default_factory=Rise)


class KlChanges(Section):
    """Changes of the KL over random draws, in nats per token; lowers, raises: shares below and above 0.

    sd: of the draws; None for a single one. mean_se: of the mean; draws and evaluation sequences are both sources of
    its error. p: of the mean being 0, two-sided.
    """

    mean: float | None = None
    mean_se: float | None = None
    p: float | None = None
    sd: float | None = None
    min: float | None = None
    max: float | None = None
    lowers: float = 0.0
    raises: float = 0.0
    values: list[float | None] = Field(default_factory=list)


class SubsetTrial(Section):
    """Random removed units added back, and as many random kept ones removed.

    interval: of the mean change by adding, 90 %, with draws and evaluation sequences as sources of its error. bound:
    what still counts as no change, the stated share of what removing as many kept units costs. equivalent: whether the
    interval lies within -bound to bound, which is two one-sided tests at 5 %; p: theirs. None where there is no test.
    """

    units: int
    added: KlChanges
    removed: KlChanges
    interval: list[float] | None = None
    bound: float | None = None
    equivalent: bool | None = None
    p: float | None = None


class InertnessInfo(Section):
    """Whether the removed units are inert: random subsets of them beside subsets of the kept ones.

    share: of what as many kept units are worth, as the bound of each test. equivalent: whether adding units back is
    shown to change nothing beyond the bound, at every size. verdict: the same, or what adding units back does to the
    KL where a change is told from noise (Holm over the sizes); "unclear" where neither is shown.
    """

    draws: int = 0
    tokens: int = 0
    sequences: int | None = None
    masked_kl: float | None = None
    masked_kl_se: float | None = None
    dropped: int = 0
    kept: int = 0
    share: float | None = None
    equivalent: bool | None = None
    sizes: list[SubsetTrial] = Field(min_length=1)
    verdict: Literal["equivalent", "unclear", "lowers", "raises", "mixed"]
    seconds: float | None = None


class NullLosses(Section):
    """Losses of the model with permuted weights, in nats per token."""

    dense: float | None = None
    dense_se: float | None = None
    empty: float | None = None
    empty_se: float | None = None
    masked: float | None = None
    masked_se: float | None = None


class Permutation(Section):
    """One model with permuted weights, and what the same method finds in it, against its own dense outputs.

    gain: by how much its dense loss is below its empty loss. informative: whether by more than two standard errors.
    """

    seed: int | None = None
    kl: float | None = None
    kl_se: float | None = None
    kl_empty: float | None = None
    kl_empty_se: float | None = None
    kl_recovered: float | None = None
    kl_recovered_se: float | None = None
    loss: NullLosses = Field(default_factory=NullLosses)
    gain: float | None = None
    gain_se: float | None = None
    faithfulness: float | None = None
    faithfulness_se: float | None = None
    informative: bool | None = None
    seconds: float | None = None


class NullControl(Section):
    """What the same method finds in models with permuted weights: means over the permutations, and each of them.

    Names that end in _sd are standard deviations over permutations. gain: by how much the dense loss is below the empty
    loss; gain_se: with permutations and evaluation sequences as sources. informative: whether the gain is above two
    standard errors; where it is not, the permuted model computes nothing that a mask could lose, and the control says
    nothing. difference: of the share of the KL that is recovered, runs of the real model minus permuted models;
    interval: 95 %, by Welch's t test over runs and permutations, None for fewer than two on a side. It compares a model
    with one that has no structure; it is no proof of what the mask found.
    """

    seed: int | None = None
    matrices: int = 0
    kl: float | None = None
    kl_sd: float | None = None
    kl_empty: float | None = None
    kl_recovered: float | None = None
    kl_recovered_sd: float | None = None
    loss: NullLosses = Field(default_factory=NullLosses)
    gain: float | None = None
    gain_se: float | None = None
    faithfulness: float | None = None
    faithfulness_sd: float | None = None
    informative: bool | None = None
    difference: float | None = None
    interval: list[float] | None = None
    difference_p: float | None = None
    permutations: list[Permutation] = Field(default_factory=list)
    seconds: float | None = None
    tokens: int = 0


class Transfer(Section):
    """What the mask does on a second text, with nothing learned or fitted there.

    shared_ngrams: share of its runs of tokens that also stand in the calibration text.
    """

    text: str = ""
    tokens: int = 0
    sequences: int = 0
    evaluation_digest: str | None = None
    shared_ngrams: float | None = None
    metrics: Metrics = Field(default_factory=Metrics)
    faithfulness: float | None = None
    faithfulness_se: float | None = None
    kl_recovered: float | None = None
    kl_recovered_se: float | None = None
    random_masks: RandomMasks | None = None


class HeadSubspaces(Section):
    """Kept subspaces of one layer and kind, a number for each KV head: means over all pairs of seeds.

    cosine2: mean squared cosine of the principal angles between the subspaces that kept directions span. random:
    expected of random subspaces of the same dimensions. chance: of matched random masks in the same bases. None where a
    seed keeps nothing there.
    """

    layer: int
    name: str = ""
    kind: Literal["k", "v"]
    kept: list[float] = Field(default_factory=list)
    cosine2: list[float | None] = Field(default_factory=list)
    random: list[float | None] = Field(default_factory=list)
    chance: list[float | None] = Field(default_factory=list)


class SubspaceAgreement(Section):
    """Whether seeds keep the same subspaces, whatever directions they chose inside of them.

    Means over heads, layers and pairs of seeds, weighted by the number of angles; k and v: of keys and values alone,
    as {cosine2, random, chance}. draws: matched random masks for each seed's.
    """

    pairs: int = 0
    draws: int = 0
    cosine2: float | None = None
    random: float | None = None
    chance: float | None = None
    k: dict[str, float | None] = Field(default_factory=dict)
    v: dict[str, float | None] = Field(default_factory=dict)
    heads: list[HeadSubspaces] = Field(default_factory=list)


class CarriedHeads(Section):
    """Kept directions of one layer and kind, a number for each KV head.

    rank: of the states that the weights can make, whatever they read. kept: how many directions are. lowest, mean:
    share of a kept direction's norm inside their span; None where nothing is kept.
    """

    layer: int
    name: str = ""
    kind: Literal["k", "v"]
    width: int
    rank: list[int] = Field(default_factory=list)
    kept: list[int] = Field(default_factory=list)
    lowest: list[float | None] = Field(default_factory=list)
    mean: list[float | None] = Field(default_factory=list)


class Carried(Section):
    """Whether kept directions are among those that the weights carry.

    lowest, mean: share of a kept direction's norm inside the span of what W_K or W_V (with bias and norm) can make,
    over all of them. deficient: how many heads' weights do not fill all dimensions, so that the share could be below 1;
    outside: kept directions with a share below 1 - tolerance.
    """

    lowest: float | None = None
    mean: float | None = None
    directions: int = 0
    outside: int = 0
    tolerance: float | None = None
    deficient: int = 0
    of_heads: int = 0
    heads: list[CarriedHeads] = Field(default_factory=list)


class Proofs(Section):
    """What a basis other than the channels has to show before its directions are believed.

    null: the same learning on models with permuted weights. transfer: to a second text. subspaces: of several seeds.
    carried: no use of directions that the weights do not carry. Matched random masks in the same basis are in
    `random_masks`, beside every run. missing: what was not measured, and what would measure it.
    """

    null: NullControl | None = None
    transfer: Transfer | None = None
    subspaces: SubspaceAgreement | None = None
    carried: Carried | None = None
    missing: list[str] = Field(default_factory=list)


class StabilityInfo(Section):
    """What several seeds agree on, and the tests of their consensus mask.

    frequency_histogram: how many channels exactly 0, 1, ..., S seeds keep; frequency_histogram_chance: expected of
    matched random masks.
    """

    seeds: list[int]
    iou: SeedAgreement = Field(default_factory=SeedAgreement)
    frequency_histogram: list[int] = Field(default_factory=list)
    frequency_histogram_chance: list[float] = Field(default_factory=list)
    single: SingleMasks
    consensus: Consensus
    necessity: NecessityInfo | None = None
    inertness: InertnessInfo | None = None
    null: NullControl | None = None


class NestedPoint(Section):
    """One target of a run for several: where its own run is, and what its mask does.

    channels: how many of these it keeps; None in files of earlier versions. selected: of a search, what the mask
    reaches on the data that decide which one is chosen.
    """

    directory: str
    target: float | None = None
    selected: float | None = None
    achieved: float = 0.0
    kept: int = 0
    total: int = 0
    channels: int | None = None
    metrics: Metrics = Field(default_factory=Metrics)
    faithfulness: float | None = None
    faithfulness_se: float | None = None
    loss_degradation_percent: float | None = None
    loss_degradation_percent_se: float | None = None
    random_masks: RandomMasks | None = None


class OldToolLosses(Section):
    """Losses that the replaced tool reported, against its own baseline, the empty model."""

    initial_loss: float | None = None
    final_loss: float | None = None


class Result(Section):
    """The content of result.json.

    resumed: the steps after which earlier attempts ended and the run was continued. not_logged: what loggers missed.
    """

    schema_version: int = SCHEMA_VERSION
    status: Status = "running"
    error: str | None = None
    traceback: str | None = None
    started: str | None = None
    finished: str | None = None
    process: dict[str, Any] | None = None
    resumed: list[int] = Field(default_factory=list)
    config: dict[str, Any] = Field(default_factory=dict)
    config_digest: str | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    checkpoint: CheckpointInfo = Field(default_factory=CheckpointInfo)
    dataset: DatasetInfo = Field(default_factory=DatasetInfo)
    notes: list[str] = Field(default_factory=list)
    mask: MaskInfo = Field(default_factory=MaskInfo)
    sparsity: Sparsity = Field(default_factory=Sparsity)
    channels: Channels = Field(default_factory=Channels)
    layers: list[LayerInfo] = Field(default_factory=list)
    metrics: Metrics = Field(default_factory=Metrics)
    loss_degradation_percent: float | None = None
    loss_degradation_percent_se: float | None = None
    faithfulness: float | None = None
    faithfulness_se: float | None = None
    basis: BasisInfo | None = None
    target: TargetInfo | None = None
    leakage: Leakage | None = None
    random_masks: RandomMasks | None = None
    proofs: Proofs | None = None
    finishing: FinishingInfo | None = None
    binarization_gap: BinarizationGap | None = None
    verdict: Verdict | None = None
    cost: Cost = Field(default_factory=Cost)
    stability: StabilityInfo | None = None
    nested: list[NestedPoint] | None = None
    task: TaskInfo | None = None
    circuit: CircuitInfo | None = None
    rival: RivalInfo | None = None
    old_tool: OldToolLosses | None = None
    not_logged: list[str] = Field(default_factory=list)

    @classmethod
    def parse(cls, content: object) -> Result:
        """The typed result from what JSON said. Raises UnreadableResult."""
        if not isinstance(content, dict) or "status" not in content:
            raise UnreadableResult("not written by an analysis")
        try:
            return cls.model_validate(upgrade(content))
        except ValidationError as error:
            raise UnreadableResult(_first_misfit(error)) from error

    @classmethod
    def read(cls, directory: Path) -> Result:
        """The result of the run in a directory. Raises FileNotFoundError, else UnreadableResult."""
        try:
            content = parse_json(read_text(directory / RESULT))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise UnreadableResult(one_line(error, 200)) from error
        return cls.parse(content)

    def write(self, directory: Path) -> None:
        """Write result.json, atomically."""
        write_json(directory / RESULT, self.as_json())

    def add_notes(self, *notes: str) -> None:
        """Add sentences to the notes."""
        self.notes = [*self.notes, *notes]

    @property
    def true_status(self) -> Status:
        """The status, or `died` where it is `running` and the process is known to be gone."""
        return "died" if self.status == "running" and has_died(self.process) else self.status

    @property
    def seed(self) -> int | None:
        """The seed of the run, the first one of several; None where it is not recorded."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def lacking(self) -> list[str]:
        """Sections that every finished run has and this one lacks; their defaults must not pass for findings."""
        return [name for name in NEEDED if name not in self.model_fields_set]

    @property
    def measured(self) -> bool:
        """Whether there is any number of what the model does; masks of other programs come without."""
        return any(model.known for model in self.metrics.values())


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a result.json of this or an earlier version in the layout of this version.

    Files without a version are of the first, in which the finishing pass went by the KL whatever the objective was. Up
    to the second, "none" as verdict on the removed units was no test of their being inert.
    Raises UnreadableResult for a version that does not exist yet.
    """
    version = content.get("schema_version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA_VERSION:
        raise UnreadableResult(
            f"schema version {version!r}, and this program knows versions up to {SCHEMA_VERSION}; use a newer mechint"
        )
    content = {**content, "schema_version": SCHEMA_VERSION}
    if version < 2 and isinstance(content.get("finishing"), dict):
        names = {"selection_kl_before": "before", "selection_kl_after": "after"}
        content["finishing"] = {names.get(name, name): value for name, value in content["finishing"].items()}
    if version < 3 and _verdict_of(content) == "none":
        inertness = {**content["stability"]["inertness"], "verdict": "unclear"}
        content["stability"] = {**content["stability"], "inertness": inertness}
    return content


def _verdict_of(content: Mapping[str, Any]) -> object:
    """The verdict on the removed units; None where there is none."""
    found: object = content
    for name in ("stability", "inertness", "verdict"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _first_misfit(error: ValidationError) -> str:
    """Where a content differs from the layout first, e.g. 'sparsity.kept: Input should be a valid integer'."""
    first = error.errors(include_url=False, include_input=False)[0]
    return one_line(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 200)
