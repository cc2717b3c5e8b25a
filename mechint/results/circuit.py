"""The sections of result.json that tell of tasks, circuits and gates."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from pydantic import Field

from mechint.masking.units import Selection
from mechint.metrics.statistics import sample_mean
from mechint.results.section import Section


class TaskInfo(Section):
    """The task that prompts ask, and what the dense model makes of it.

    accuracy: of the dense model on all prompts of a side; left_out: how many of these it got wrong, which are not used.
    prompts: how many are used. example: the first evaluation prompt.
    """

    name: str
    prompts: dict[str, int] = Field(default_factory=dict)
    accuracy: dict[str, float] = Field(default_factory=dict)
    left_out: dict[str, int] = Field(default_factory=dict)
    example: dict[str, str] = Field(default_factory=dict)


class TaskScores(Section):
    """What a model does on the task: means over prompts, with 95 % intervals. kl_median, kl_p95: over prompts, of the
    KL from the dense model at the answer, in nats.
    """

    logit_diff: float | None = None
    logit_diff_interval: list[float] | None = None
    accuracy: float | None = None
    kl: float | None = None
    kl_interval: list[float] | None = None
    kl_median: float | None = None
    kl_p95: float | None = None


class AblationScores(Section):
    """One mask under one ablation: the task's scores of four models, and faithfulness of the logit difference.

    completeness: faithfulness of the complement, 0 where nothing of the behaviour is left outside of the circuit.
    """

    ablation: str
    empty: TaskScores = Field(default_factory=TaskScores)
    masked: TaskScores = Field(default_factory=TaskScores)
    complement: TaskScores = Field(default_factory=TaskScores)
    faithfulness: float | None = None
    faithfulness_interval: list[float] | None = None
    completeness: float | None = None
    completeness_interval: list[float] | None = None


class CircuitPoint(Section):
    """The circuit of the `kept` units that rank highest. share: of all units, as asked for."""

    share: float
    kept: int
    faithfulness: float | None = None
    faithfulness_interval: list[float] | None = None
    completeness: float | None = None
    completeness_interval: list[float] | None = None
    logit_diff: float | None = None
    accuracy: float | None = None
    kl: float | None = None
    kl_interval: list[float] | None = None


class Area(Section):
    """A number over the whole curve with its 95 % interval over prompts."""

    value: float | None = None
    interval: list[float] | None = None


class Incompleteness(Section):
    """|faithfulness of the circuit without K - of the model without K| over random parts K of the circuit (Wang et al.
    2022). interval: of the mean over the same parts, 95 % over prompts.
    """

    draws: int = 0
    mean: float | None = None
    interval: list[float] | None = None
    max: float | None = None


class Minimality(Section):
    """Kept units of one KV head's keys, or values, removed together, one such part at a time from the whole circuit.

    needed: the KL rises, by a t test over families of prompts at a level of 5 % for all parts together (`correction`:
    "holm"; in files of earlier versions None, where each part has a 95 % interval of its own). harmful: it falls
    likewise.

    It is less than minimality as Wang et al. (2022) define it, which looks for every node for a set of others without
    which it makes a difference: of parts that stand in for each other none is needed here, and all may be there.
    """

    parts: int = 0
    tested: int = 0
    prompts: int = 0
    needed: int = 0
    harmful: int = 0
    share_needed: float | None = None
    correction: str | None = None


class ParaphraseScores(Section):
    """The same mask on the same question in other words.

    iou: the channels that this mask shares with one learned on `learned_prompts` paraphrases, over those that either
    keeps; chance: its expectation for random masks with the same counts in every layer, kind and KV head. Both are None
    where no such mask was learned, and of several seeds the means of their own masks'.
    """

    prompts: int = 0
    faithfulness: float | None = None
    faithfulness_interval: list[float] | None = None
    kl: float | None = None
    kl_interval: list[float] | None = None
    accuracy: float | None = None
    iou: float | None = None
    chance: float | None = None
    learned_prompts: int | None = None


class OverSeeds(Section):
    """The mean of a number over the masks of `seeds` seeds, and its 95 % interval by Student's t: what another seed's
    mask may be expected to give on the same prompts. None with a single seed that has the number.
    """

    mean: float | None = None
    interval: list[float] | None = None
    seeds: int = 0

    @classmethod
    def of(cls, values: Sequence[float | None]) -> OverSeeds:
        """From the numbers of all seeds, some of which may have none."""
        known = [value for value in values if value is not None]
        if not known:
            return cls()
        found = sample_mean(np.array(known))
        ends = found.interval()
        return cls(mean=found.mean, interval=None if ends is None else list(ends), seeds=len(known))


class SeedScores(Section):
    """The numbers of each seed's own mask, in the order of the seeds, and what they are over seeds."""

    faithfulness: list[float | None] = Field(default_factory=list)
    kl: list[float | None] = Field(default_factory=list)
    cmd: list[float | None] = Field(default_factory=list)
    faithfulness_over_seeds: OverSeeds = Field(default_factory=OverSeeds)
    kl_over_seeds: OverSeeds = Field(default_factory=OverSeeds)
    cmd_over_seeds: OverSeeds = Field(default_factory=OverSeeds)


class CircuitInfo(Section):
    """What a mask is worth as a circuit of a task, under the ablation that it was learned with.

    faithfulness: of the logit difference, 1 as the dense model and 0 as the empty one; above 1 is no success.
    completeness: faithfulness of the complement. Intervals are 95 %, by the bootstrap over families of prompts that are
    versions of each other, for this one mask. ablations: the same mask under all ablations.
    selection: whether units are ranked by a signed score, those that do harm last, by a size, or by a rank put together
    from several scores or runs. within_10_percent: the
    fewest units of the curve whose logit difference lies within 10 % of the dense model's, from there on.
    contrast_interval: of the dense model's logit difference minus the empty one's. Where it does not lie above 0 the
    behaviour needs no unit, and faithfulness and everything made of it are None.
    """

    metric: str = "logit_diff"
    prompts: int = 0
    ablation: str = "zero"
    selection: Selection = "signed"
    faithfulness: float | None = None
    faithfulness_interval: list[float] | None = None
    completeness: float | None = None
    completeness_interval: list[float] | None = None
    dense: TaskScores = Field(default_factory=TaskScores)
    empty: TaskScores = Field(default_factory=TaskScores)
    masked: TaskScores = Field(default_factory=TaskScores)
    complement: TaskScores = Field(default_factory=TaskScores)
    ablations: list[AblationScores] = Field(default_factory=list)
    curve: list[CircuitPoint] = Field(default_factory=list)
    cpr: Area = Field(default_factory=Area)
    cmd: Area = Field(default_factory=Area)
    cpr_log: Area = Field(default_factory=Area)
    cmd_log: Area = Field(default_factory=Area)
    within_10_percent: int | None = None
    contrast_interval: list[float] | None = None
    incompleteness: Incompleteness | None = None
    minimality: Minimality | None = None
    paraphrase: ParaphraseScores | None = None
    seeds: SeedScores | None = None
    seconds: float | None = None
    tokens: int = 0

    @property
    def tells(self) -> bool:
        """Whether the dense model does what the empty one does not, so that there is something to be faithful to."""
        return self.contrast_interval is None or self.contrast_interval[0] > 0


def add_seeds(whole: CircuitInfo, circuits: Sequence[CircuitInfo | None]) -> None:
    """Add to the circuit of several seeds' consensus the numbers of each seed's own mask."""
    known = [circuit for circuit in circuits if circuit is not None]
    faithfulness = [circuit.faithfulness for circuit in known]
    kl, cmd = [circuit.masked.kl for circuit in known], [circuit.cmd.value for circuit in known]
    whole.seeds = SeedScores(
        faithfulness=faithfulness,
        kl=kl,
        cmd=cmd,
        faithfulness_over_seeds=OverSeeds.of(faithfulness),
        kl_over_seeds=OverSeeds.of(kl),
        cmd_over_seeds=OverSeeds.of(cmd),
    )
    compared = [
        one.paraphrase for one in known if one.paraphrase is not None and one.paraphrase.iou is not None
    ]
    if whole.paraphrase is not None and compared:
        whole.paraphrase.iou = fmean(one.iou for one in compared if one.iou is not None)
        whole.paraphrase.chance = fmean(one.chance for one in compared if one.chance is not None)
        whole.paraphrase.learned_prompts = compared[0].learned_prompts


class RivalInfo(Section):
    """What a mask shares with that of the run that it was to differ from.

    shared: kept channels in common; iou: over those that either keeps; chance: its expectation for random masks with
    the same counts in every layer, kind and KV head.
    """

    of: str
    shared: int = 0
    iou: float | None = None
    chance: float | None = None


class GateResult(Section):
    """One gate: its wording, the number it asks for, and whether that passes. value: None where it was not measured."""

    gate: str
    value: float | None = None
    passed: bool = False
