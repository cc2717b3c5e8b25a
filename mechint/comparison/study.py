"""What a tree of runs is: points on sparsity curves, grouped by checkpoint and method; plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mechint.metrics.agreement import Agreement
from mechint.metrics.spread import Spread

# bf16 or fp16 caches; stated wherever bytes are shown.
BYTES_PER_ELEMENT = 2


@dataclass(frozen=True)
class StudyRun:
    """One finished run. directory: relative to the tree's root. sparsity: achieved, of units.

    kept_channels of total_channels: K and V, all layers and KV heads. seed, kl, ... are None where not
    recorded.
    """

    directory: str
    digest: str
    finished: str
    seed: int | None
    target: float
    sparsity: float
    kept_channels: int
    total_channels: int
    loss: float | None
    dense_loss: float | None
    empty_loss: float | None
    loss_degradation_percent: float | None
    kl: float | None
    faithfulness: float | None
    evaluation_digest: str


@dataclass(frozen=True)
class StudyPoint:
    """The runs of one group at one achieved sparsity: its seeds.

    sparsity: achieved, of units. kv_bytes_per_token: bytes of kept K and V channels per token, over all
    layers, at BYTES_PER_ELEMENT, nothing padded (mean over runs). agreement: of the seeds' masks; None for a single run
    or where masks are missing.
    """

    sparsity: float
    target: float
    kv_bytes_per_token: float
    runs: tuple[StudyRun, ...]
    agreement: Agreement | None = None

    def spread(self, name: str) -> Spread | None:
        """A number of StudyRun ("loss", "kl", ...) over the seeds; None where no run has it."""
        return Spread.of(getattr(run, name) for run in self.runs)


@dataclass(frozen=True)
class StudyGroup:
    """Runs of one checkpoint with one set of options, apart from seed and target sparsity: one curve.

    label: short and unique within the study, names only what differs. points: by sparsity, ascending.
    dense_loss, empty_loss: nats per token, None where unknown. dense_kv_bytes_per_token: bytes with every
    channel.
    """

    label: str
    checkpoint: str
    method: str
    points: tuple[StudyPoint, ...]
    dense_loss: float | None
    empty_loss: float | None
    dense_kv_bytes_per_token: int


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without usable numbers. status: failed, interrupted, died, running, unreadable. reason: one line."""

    directory: str
    status: str
    reason: str


@dataclass(frozen=True)
class Study:
    """Every run below a directory. flags: shown first, as in Comparison. notes: smaller remarks."""

    root: Path
    groups: tuple[StudyGroup, ...]
    unfinished: tuple[UnfinishedRun, ...]
    flags: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> tuple[StudyRun, ...]:
        """All finished runs, by group and sparsity."""
        return tuple(run for group in self.groups for point in group.points for run in point.runs)


class StudyFigure(Protocol):
    """One kind of picture of a study."""

    def draw(self, study: Study, directory: Path, dpi: int) -> list[Path]:
        """Write the picture into `directory` and return its path."""
        ...
