"""One mask and the ranking behind it, measured as the circuit literature measures circuits."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mechint.circuits import scores
from mechint.circuits.meaning import explain
from mechint.circuits.scores import GRID, faithfulness_of, interval_of, kept_at
from mechint.data import TokenData
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import MaskedModel, Units
from mechint.masking.ablation import Ablation, known_ablations
from mechint.masking.optimal_ablation import OptimalAblation
from mechint.masking.random_masks import places
from mechint.masking.units import Selection
from mechint.metrics.evaluation import Evaluator, family_means, resampled
from mechint.metrics.gradients import gate_gradient
from mechint.metrics.metric import ACCURACY, KL, LOGIT_DIFF, Metric
from mechint.metrics.statistics import ALPHA, adjusted, sample_mean
from mechint.results.circuit import (
    AblationScores,
    Area,
    CircuitInfo,
    CircuitPoint,
    Incompleteness,
    Minimality,
    ParaphraseScores,
    TaskScores,
)
from mechint.results.units import UnitMeanings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ABLATIONS = ("zero", "mean", "mean_per_position", "counterfactual", "optimal")

METRICS: list[Metric] = [LOGIT_DIFF, ACCURACY, KL]

# A circuit does as well as the dense model where its logit difference is within this share of it.
CLOSE = 0.1


@dataclass(frozen=True, kw_only=True)
class CircuitStudy:
    """What is measured of a mask on a task's evaluation prompts.

    shares: of the units, ascending, that the circuits of the curve keep: the highest-ranked ones. ablations: the mask
    is scored under each. prompts: at most so many evaluation prompts. optimal_steps: of learning constants for a mask
    under the optimal ablation; each sees `optimal_prompts` calibration prompts. knockouts:
    random parts of the circuit that are removed from circuit and model. minimality_parts: at most so many of the
    circuit's parts (kept keys, or values, of a KV head) are removed alone, on `minimality_prompts` prompts, where
    Wang et al. (2022) look for a set of others to remove with each. explained_units: how many of the kept units that
    rank highest units.json tells of. paraphrase_iou: whether a second mask is learned, on paraphrases, to tell how much
    of the two is shared.

    Raises UserError for values out of range.
    """

    shares: Sequence[float] = GRID
    ablations: Sequence[str] = ABLATIONS
    prompts: int = 64
    optimal_steps: int = 20
    optimal_prompts: int = 12
    knockouts: int = 5
    minimality_parts: int = 32
    minimality_prompts: int = 16
    explained_units: int = 24
    paraphrase_iou: bool = False

    metric: ClassVar[str] = LOGIT_DIFF.name

    def __post_init__(self) -> None:
        shares = list(self.shares)
        if len(shares) < 2 or shares != sorted(set(shares)) or not shares[0] > 0 or not shares[-1] <= 1:
            raise UserError("circuit.shares must be at least two ascending shares of the units in (0, 1]")
        for name in self.ablations:
            if name not in known_ablations():
                known = ", ".join(known_ablations())
                raise UserError(f"circuit.ablations: {name} is not known; use some of {known}")
        for name in ("prompts", "optimal_prompts", "minimality_prompts"):
            if getattr(self, name) < 2:
                raise UserError(f"circuit.{name}={getattr(self, name)} must be at least 2")
        for name in ("optimal_steps", "knockouts", "minimality_parts", "explained_units"):
            if getattr(self, name) < 0:
                raise UserError(f"circuit.{name}={getattr(self, name)} must be at least 0; 0 leaves it out")

    def measure(
        self,
        masked: MaskedModel,
        data: TokenData,
        units: Units,
        keep: Tensor,
        ranking: Tensor,
        ablation: Ablation,
        calibration: Batch,
        at_once: int,
        selection: Selection,
        seed: int,
    ) -> CircuitInfo | None:
        """Measure a mask keep, bool [U], and the ranking [U], higher first, of all units; None without a task.

        ablation: fitted. calibration: prompts that other ablations are fitted to.
        """
        if data.task is None:
            return None
        started = time.perf_counter()
        prompts = data.evaluation[: self.prompts]
        bench = _Bench(masked, prompts, units, ablation, at_once)
        keep = keep.cpu()
        info = CircuitInfo(
            metric=self.metric, prompts=len(prompts), ablation=ablation.name, selection=selection
        )
        order = torch.argsort(ranking.cpu(), descending=True, stable=True)
        kept = [kept_at(share, units.count) for share in self.shares]
        circuits = [torch.zeros_like(keep).index_fill_(0, order[:count], True) for count in kept]
        self._curve(info, bench, keep, circuits, kept)
        info.ablations = [
            self._under(name, bench, keep, info, calibration, at_once) for name in self.ablations
        ]
        generator = torch.Generator().manual_seed(seed)
        if self.knockouts and keep.any() and info.tells:
            info.incompleteness = self._knock_out(bench, keep, generator)
        if self.minimality_parts and keep.any():
            info.minimality = self._minimality(bench, keep, generator)
        if data.task.paraphrases is not None:
            info.paraphrase = _paraphrase(replace(bench, prompts=data.task.paraphrases[: self.prompts]), keep)
        info.seconds, info.tokens = time.perf_counter() - started, sum(bench.spent)
        return info

    def explain(
        self,
        masked: MaskedModel,
        data: TokenData,
        units: Units,
        keep: Tensor,
        ranking: Tensor,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> UnitMeanings | None:
        """What the highest-ranked kept units do on the prompts that minimality is measured on; None without any."""
        if not self.explained_units:
            return None
        order = torch.argsort(ranking.cpu(), descending=True, stable=True)
        chosen = [number for number in order.tolist() if keep[number]][: self.explained_units]
        if not chosen or data.task is None:
            return None
        return explain(masked, data.evaluation[: self.minimality_prompts], units, chosen, tokenizer)

    def _curve(
        self, info: CircuitInfo, bench: _Bench, keep: Tensor, circuits: list[Tensor], kept: list[int]
    ) -> None:
        """The four models, and circuits of every size with their complements."""
        nothing = torch.zeros_like(keep)
        values = bench([None, nothing, keep, ~keep, *circuits, *(~one for one in circuits)])
        info.dense, info.empty, info.masked, info.complement = (bench.scores(one) for one in values[:4])
        draws = bench.resampled(values[:, 0])  # [draws, models]
        means = values.mean(-1)  # [models, metrics]
        dense, empty = means[0, 0], means[1, 0]
        faithful = faithfulness_of(dense, empty, means[:, 0])  # [models]
        drawn = faithfulness_of(draws[:, :1], draws[:, 1:2], draws)  # [draws, models]
        info.contrast_interval = interval_of(draws[:, 0] - draws[:, 1])
        count, shares = len(circuits), list(self.shares)
        first, last = slice(4, 4 + count), slice(4 + count, None)
        drawn_kl = bench.resampled(values[first, METRICS.index(KL)])  # [draws, circuits]
        info.curve = [
            CircuitPoint(
                share=share,
                kept=kept[place],
                logit_diff=float(means[first][place, 0]),
                accuracy=float(means[first][place, 1]),
                kl=float(means[first][place, 2]),
                kl_interval=interval_of(drawn_kl[:, place]),
            )
            for place, share in enumerate(shares)
        ]
        if not info.tells:
            return
        info.faithfulness, info.completeness = float(faithful[2]), float(faithful[3])
        info.faithfulness_interval, info.completeness_interval = map(interval_of, drawn[:, 2:4].unbind(1))
        for place, point in enumerate(info.curve):
            point.faithfulness = float(faithful[first][place])
            point.faithfulness_interval = interval_of(drawn[:, first][:, place])
            point.completeness = float(faithful[last][place])
            point.completeness_interval = interval_of(drawn[:, last][:, place])
        for name, score, log_scale in (
            ("cpr", scores.cpr, False),
            ("cmd", scores.cmd, False),
            ("cpr_log", scores.cpr, True),
            ("cmd_log", scores.cmd, True),
        ):
            value, spread = (
                score(shares, faithful[first], log_scale),
                score(shares, drawn[:, first], log_scale),
            )
            setattr(info, name, Area(value=float(value), interval=interval_of(spread)))
        info.within_10_percent = fewest_within(
            [0, *kept], [float(empty), *(float(value) for value in means[first][:, 0])], float(dense)
        )

    def _under(
        self, name: str, bench: _Bench, keep: Tensor, info: CircuitInfo, calibration: Batch, at_once: int
    ) -> AblationScores:
        """The mask under one of the ablations."""
        if name == bench.ablation.name and name != OptimalAblation.name:
            return AblationScores(
                ablation=name,
                empty=info.empty,
                masked=info.masked,
                complement=info.complement,
                faithfulness=info.faithfulness,
                faithfulness_interval=info.faithfulness_interval,
                completeness=info.completeness,
                completeness_interval=info.completeness_interval,
            )
        nothing, masked = torch.zeros_like(keep), bench.masked
        own = name == bench.ablation.name  # with the run's settings, but constants for each circuit
        fitted = (bench.ablation if own else known_ablations()[name]()).fit(masked, calibration, at_once)
        if isinstance(fitted, OptimalAblation):
            learned = calibration[: self.optimal_prompts]
            bench.spent.append(3 * self.optimal_steps * learned.tokens.numel())
            rows = []
            for gates in (nothing, keep, ~keep):
                constants = learn_constants(
                    masked, learned, bench.units.to_channels(gates), fitted, self.optimal_steps, at_once
                )
                rows.append(bench.under(constants)([gates])[0])
            values = torch.stack([bench([None])[0], *rows])
        else:
            values = bench.under(fitted)([None, nothing, keep, ~keep])
        draws = bench.resampled(values[:, 0])
        means = values[:, 0].mean(-1)
        faithful = faithfulness_of(means[0], means[1], means)
        told = AblationScores(
            ablation=name,
            empty=bench.scores(values[1]),
            masked=bench.scores(values[2]),
            complement=bench.scores(values[3]),
        )
        if scores.differ(draws[:, 0], draws[:, 1]):
            told.faithfulness, told.completeness = float(faithful[2]), float(faithful[3])
            drawn = faithfulness_of(draws[:, :1], draws[:, 1:2], draws[:, 2:])
            told.faithfulness_interval, told.completeness_interval = map(interval_of, drawn.unbind(1))
        return told

    def _knock_out(self, bench: _Bench, keep: Tensor, generator: torch.Generator) -> Incompleteness:
        """Remove random halves of the circuit from it and from the whole model."""
        halves = [keep & (torch.rand(len(keep), generator=generator) < 0.5) for _ in range(self.knockouts)]
        nothing = torch.zeros_like(keep)
        gates = [None, nothing, *(keep & ~half for half in halves), *(~half for half in halves)]
        values = bench(gates)[:, 0]  # [masks, M]
        # Of the prompts themselves, and then of every draw of them.
        means = torch.cat([values.mean(-1)[None], bench.resampled(values)])
        faithful = faithfulness_of(means[:, :1], means[:, 1:2], means[:, 2:]).unflatten(1, (2, -1))
        differences = (faithful[:, 0] - faithful[:, 1]).abs()  # [1 + draws, knockouts]
        return Incompleteness(
            draws=self.knockouts,
            mean=float(differences[0].mean()),
            interval=interval_of(differences[1:].mean(1)),
            max=float(differences[0].max()),
        )

    def _minimality(self, bench: _Bench, keep: Tensor, generator: torch.Generator) -> Minimality:
        """Remove parts of the circuit one at a time, with a test for each that holds for all of them together."""
        place = places(bench.units)
        parts = place[keep].unique()
        tested = parts[torch.randperm(len(parts), generator=generator)[: self.minimality_parts]]
        few = replace(bench, prompts=bench.prompts[: self.minimality_prompts])
        kl = few([keep, *(keep & (place != part) for part in tested)])[:, METRICS.index(KL)]  # [masks, M]
        changes = [sample_mean(one) for one in family_means(kl[1:] - kl[0], few.prompts.families).numpy()]
        told = [
            change.mean
            for change, p in zip(changes, adjusted(change.p_value() for change in changes), strict=True)
            if p is not None and p <= ALPHA
        ]
        needed, harmful = sum(change > 0 for change in told), sum(change < 0 for change in told)
        return Minimality(
            parts=len(parts),
            tested=len(tested),
            prompts=len(few.prompts),
            needed=needed,
            harmful=harmful,
            share_needed=needed / len(tested),
            correction="holm",
        )


@dataclass(frozen=True)
class _Bench:
    """Prompts that masks are measured on, by METRICS."""

    masked: MaskedModel
    prompts: Batch
    units: Units
    ablation: Ablation
    at_once: int
    spent: list[int] = field(default_factory=list)  # tokens that went through the model

    def __call__(self, gates: Sequence[Tensor | None]) -> Tensor:
        """Numbers of every prompt, double [masks, metrics, M], for masks bool [U]; None is the dense model.

        Masks that keep everything are the dense model, and equal ones are measured once.
        """
        keys = [None if gate is None or bool(gate.all()) else gate.numpy().tobytes() for gate in gates]
        different = dict(zip(keys, gates, strict=True))
        asked = [None if key is None else self.units.to_channels(gate) for key, gate in different.items()]  # type: ignore[arg-type]
        evaluator = Evaluator(self.masked, self.prompts, self.ablation, self.at_once)
        found = evaluator(asked, METRICS)
        self.spent.append(evaluator.tokens + self.prompts.tokens.numel())
        numbers = {key: place for place, key in enumerate(different)}
        return found[[numbers[key] for key in keys]]

    def resampled(self, values: Tensor) -> Tensor:
        """Means over prompts, double [draws, ...], of bootstrap samples of families, from values [..., M]."""
        return resampled(values, self.prompts.positions, self.prompts.families)

    def scores(self, values: Tensor) -> TaskScores:
        """Means and quantiles over prompts of METRICS, [metrics, M]."""
        logit_diff, accuracy, kl = values
        drawn = self.resampled(values)  # [draws, metrics]
        return TaskScores(
            logit_diff=float(logit_diff.mean()),
            logit_diff_interval=interval_of(drawn[:, 0]),
            accuracy=float(accuracy.mean()),
            kl=float(kl.mean()),
            kl_interval=interval_of(drawn[:, METRICS.index(KL)]),
            kl_median=float(kl.quantile(0.5)),
            kl_p95=float(kl.quantile(0.95)),
        )

    def under(self, ablation: Ablation) -> _Bench:
        """The same under another ablation."""
        return replace(self, ablation=ablation)


def fewest_within(kept: Sequence[int], values: Sequence[float], dense: float) -> int | None:
    """The fewest kept units from which on every circuit's number lies within 10 % of the dense model's; None: none."""
    found = None
    for count, value in sorted(zip(kept, values, strict=True), reverse=True):
        if abs(value - dense) > CLOSE * abs(dense):
            break
        found = count
    return found


def learn_constants(
    masked: MaskedModel, batch: Batch, gates: Tensor, start: OptimalAblation, steps: int, at_once: int
) -> OptimalAblation:
    """The constants that serve one hard mask, bool [N], best, by the KL from the dense model on a batch."""
    constants = start.fresh()
    batch = batch.to(masked.device)
    dense: dict[int, Tensor] = {}

    def wished(part: Tensor) -> Tensor:
        first = int(part[0])
        if first not in dense:
            dense[first] = masked.hidden(batch[part])
        return dense[first]

    fixed = gates.float().to(masked.device)
    for _ in range(steps):
        gate_gradient(masked, batch, fixed, KL, constants, wished, at_once)
        constants.step()
    return constants


def _paraphrase(bench: _Bench, keep: Tensor) -> ParaphraseScores:
    """The mask on paraphrases."""
    values = bench([None, torch.zeros_like(keep), keep])
    draws = bench.resampled(values[:, 0])
    means = values.mean(-1)
    told = ParaphraseScores(
        prompts=len(bench.prompts),
        kl=float(means[2, 2]),
        kl_interval=interval_of(bench.resampled(values[2, 2])),
        accuracy=float(means[2, 1]),
    )
    if scores.differ(draws[:, 0], draws[:, 1]):
        told.faithfulness = float(faithfulness_of(means[0, 0], means[1, 0], means[2, 0]))
        told.faithfulness_interval = interval_of(faithfulness_of(draws[:, 0], draws[:, 1], draws[:, 2]))
    return told
