"""The content of result.json, typed: what a run was, what it found and what it cost.

Everything that analysis writes is one `Result`, and every reader gets one. Sections that a run has not reached yet are
left out of the file; a reader then sees their defaults. Fields that this version does not know are kept.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["running", "done", "failed", "interrupted", "died"]

# The four models that every run measures: all units, none, the mask's, and exactly those that the mask removed.
ModelName = Literal["dense", "empty", "masked", "complement"]
MODELS: tuple[ModelName, ...] = ("dense", "empty", "masked", "complement")


class Section(BaseModel):
    """A part of result.json."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, protected_namespaces=())


class CheckpointInfo(Section):
    """Which weights the numbers belong to, and the attention's shape (lists where layers differ)."""

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


class DatasetInfo(Section):
    """Which tokens the numbers belong to; counts are of predicted tokens."""

    name: str | None = None
    tokenizer: str | None = None
    sequence_length: int | None = None
    calibration_tokens: int | None = None
    evaluation_tokens: int | None = None
    evaluation_bytes: int | None = None
    evaluation_digest: str | None = None


class MaskInfo(Section):
    """What was learned and how, in the names of the classes."""

    method: str | None = None
    unit: str = "channel"
    scope: str | None = None
    ablation: str = "zero"
    tie_kv: bool = False
    objective: str | None = None
    schedule: str | None = None


class Count(Section):
    """Units or channels kept of a total."""

    total: int = 0
    kept: int = 0


class Channels(Count):
    """Channels kept, over K and V and each."""

    k: Count = Field(default_factory=Count)
    v: Count = Field(default_factory=Count)


class Sparsity(Channels):
    """Units kept, and the fraction removed: asked for and reached."""

    target: float | None = None
    achieved: float = 0.0


class ModelMetrics(Section):
    """What one of the four models does on evaluation data; None where it is not known or not finite.

    loss and kl are nats per predicted token. Names that end in _se are standard errors.
    """

    loss: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None


class Metrics(Section):
    """The four models on evaluation data."""

    dense: ModelMetrics = Field(default_factory=ModelMetrics)
    empty: ModelMetrics = Field(default_factory=ModelMetrics)
    masked: ModelMetrics = Field(default_factory=ModelMetrics)
    complement: ModelMetrics = Field(default_factory=ModelMetrics)

    def __getitem__(self, name: str) -> ModelMetrics:
        model: ModelMetrics = getattr(self, name)
        return model


class LayerInfo(Section):
    """One attention layer: units kept of K and V, fraction removed, mean importance."""

    name: str
    index: int
    k_kept: int = 0
    k_total: int = 0
    v_kept: int = 0
    v_total: int = 0
    sparsity: float = 0.0
    mean_importance: float | None = None


class FinishingInfo(Section):
    """What the finishing pass gained on its selection rows."""

    selection_kl_before: float | None = None
    selection_kl_after: float | None = None
    exchanged_units: int = 0


class BinarizationGap(Section):
    """What making soft gates hard cost: gates open at the end, and KL of the hard mask minus that of the soft gates."""

    soft_kl: float | None = None
    soft_open: int | None = None
    gap: float | None = None


class Cost(Section):
    """What the run took; `seconds` are those of learning, `total_seconds` of everything."""

    steps: int = 0
    batch_size: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    dense_cache_bytes: int | None = None
    total_seconds: float | None = None
    threads: int | None = None


class Result(Section):
    """The content of result.json."""

    schema_version: int = 1
    status: str = "running"
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
    mask: MaskInfo = Field(default_factory=MaskInfo)
    sparsity: Sparsity = Field(default_factory=Sparsity)
    channels: Channels = Field(default_factory=Channels)
    layers: list[LayerInfo] = Field(default_factory=list)
    metrics: Metrics = Field(default_factory=Metrics)
    loss_degradation_percent: float | None = None
    faithfulness: float | None = None
    finishing: FinishingInfo | None = None
    binarization_gap: BinarizationGap | None = None
    cost: Cost = Field(default_factory=Cost)
    notes: list[str] = Field(default_factory=list)
    not_logged: list[str] = Field(default_factory=list)
