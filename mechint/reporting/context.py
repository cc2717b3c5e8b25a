"""Everything that figures and reports of a run are drawn from, worked out once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mechint.masking.space import Kind as Part
from mechint.reporting.wording import plural
from mechint.results.result import CostPart, LayerInfo, Result, Verdict
from mechint.results.run_files import RunFiles
from mechint.results.verdict import judge

Kind = Literal["K", "V"]
KINDS: tuple[Kind, Kind] = ("K", "V")
PARTS: dict[Kind, Part] = {"K": "k", "V": "v"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """One layer's K or V, each [G, C]; in a basis the directions of a head come by their share, the largest first.

    kept: bool. shade: rank of the importance among the kept, or among the removed, of the whole model, from 0 to 1.
    rank: that among all. targets: how many targets of a nested run keep the channel.
    """

    kept: NDArray[np.bool_]
    shade: Floats
    rank: Floats
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class CostRow:
    """A line of the table of costs."""

    name: str
    detail: str
    seconds: float | None
    tokens: int | None


@dataclass(frozen=True)
class Context:
    """A run, and what follows from its files."""

    run: RunFiles

    @property
    def result(self) -> Result:
        """The content of result.json."""
        return self.run.result

    @cached_property
    def layers(self) -> list[LayerInfo]:
        """The per-layer entries, ordered by index; counts are units."""
        return self.run.layers

    @cached_property
    def verdict(self) -> Verdict:
        """What the mask is worth, by the thresholds that the glossary names."""
        return judge(self.result, self.run.history)

    @property
    def in_basis(self) -> bool:
        """Whether units are directions and not the model's own channels."""
        basis = self.result.basis
        return basis is not None and (basis.keys, basis.values) != ("channels", "channels")

    @property
    def noun(self) -> str:
        """What one coordinate of a head is called."""
        return "direction" if self.in_basis else "channel"

    def counted(self, count: int) -> str:
        """'51 channels'."""
        return plural(count, self.noun)

    @property
    def one_shot(self) -> bool:
        """Whether the method only scores: it takes no steps, and has neither objective nor schedule."""
        return self.run.measured and not self.result.cost.steps and not self.run.history

    @property
    def is_ladder(self) -> bool:
        """Whether this sums up nested runs for several sparsities, whose units are all ranked together."""
        return bool(self.result.nested) and self.result.target is None

    @property
    def importance(self) -> str:
        """What importance means in this run, in a few words."""
        if self.result.stability:
            return "how many seeds keep it, then its mean rank"
        if self.is_ladder:
            return "how many targets keep it, then the score of the last run that could"
        return self.result.mask.importance or (
            "the method's score" if self.run.measured else "the file's own score"
        )

    def cells(self, layer: LayerInfo, kind: Kind) -> Cells:
        """One layer's K or V."""
        return self._cells[layer.name, kind]

    def count(self, kind: Kind) -> tuple[int, int]:
        """How many channels of a kind are kept, and how many there are."""
        every = [self.cells(layer, kind).kept for layer in self.layers]
        return sum(int(kept.sum()) for kept in every), sum(kept.size for kept in every)

    @cached_property
    def _cells(self) -> dict[tuple[str, Kind], Cells]:
        kept = self._flat("mask").astype(bool)
        importance = self._flat("importance")
        shade = np.empty_like(importance)
        for chosen in (kept, ~kept):
            shade[chosen] = percentiles(importance[chosen])
        flat, energy = (kept, shade, percentiles(importance), self._targets(importance)), self.run.energy
        share = np.zeros_like(importance) if energy is None else energy.double().cpu().numpy()
        cells, start = {}, 0
        for name, kind, shape in self._shapes():
            here = slice(start, start := start + shape[0] * shape[1])
            order = np.argsort(-share[here].reshape(shape), axis=1, kind="stable")
            cells[name, kind] = Cells(
                *(np.take_along_axis(one[here].reshape(shape), order, 1) for one in flat)
            )
        return cells

    def _shapes(self) -> Iterator[tuple[str, Kind, tuple[int, int]]]:
        for layer in self.layers:
            for kind in KINDS:
                heads, width = getattr(self.run.masks[layer.name], f"{PARTS[kind]}_mask").shape
                yield layer.name, kind, (heads, width)

    def _flat(self, name: str) -> Floats:
        """A tensor of all masks, float [N], layer by layer, K before V."""
        tensors = [
            getattr(self.run.masks[layer], f"{PARTS[kind]}_{name}") for layer, kind, _ in self._shapes()
        ]
        return np.concatenate([tensor.double().cpu().numpy().ravel() for tensor in tensors])

    def _targets(self, importance: Floats) -> NDArray[np.int64]:
        """How many targets keep each channel, [N], by the one ranking of a nested run; 0 for other runs."""
        found = np.zeros(len(importance), dtype=np.int64)
        for point in (self.result.nested or []) if self.is_ladder else []:
            kept = point.channels
            if kept is None:
                kept = round(point.kept / point.total * len(importance))
            if kept:
                found += importance >= np.sort(importance)[-kept]
        return found

    @cached_property
    def cost(self) -> list[CostRow]:
        """What the run took, part by part, what is left over, and the total; nothing where no time is known."""
        cost = self.result.cost
        parts: dict[str, list[CostPart]] = {}
        for part in cost.parts:  # what sums up runs may name a part of its own as they do
            parts.setdefault(part.name, []).append(part)
        rows = [
            CostRow(
                name,
                self._detail(name),
                sum(one.seconds or 0 for one in same),
                sum(one.tokens for one in same),
            )
            for name, same in parts.items()
        ]
        if not rows and cost.seconds is not None:  # as earlier versions have it
            rows.append(
                CostRow("steps" if cost.steps else "scores", self._detail("steps"), cost.seconds, cost.tokens)
            )
        if not rows:
            return []
        known = sum(row.seconds or 0.0 for row in rows)
        # Runs that were there already are not in the time of the run that sums them up.
        total = max(cost.total_seconds or 0.0, known, sum(run.seconds or 0.0 for run in cost.runs))
        rows.append(CostRow("everything else", "loading, saving, writing, waiting", total - known, None))
        return [*rows, CostRow("total", "", total, sum(row.tokens or 0 for row in rows))]

    def _detail(self, name: str) -> str:
        """What a part of the cost consisted of."""
        cost, done, random = self.result.cost, self.result.finishing, self.result.random_masks
        if name == "steps" and cost.steps:
            each = "" if cost.step_seconds is None else f", {1000 * cost.step_seconds:,.0f} ms each"
            return f"{plural(cost.steps, 'step')}{each}"
        if name == "finishing" and done is not None:
            return f"{done.tried or 0:,} exchanges tried, {plural(done.exchanged_units, 'unit')} exchanged"
        if name == "random masks" and random is not None:
            return plural(random.count, "mask")
        said = {"measuring": "dense, empty, masked, complement"}
        if (stability := self.result.stability) is not None:
            if stability.necessity:
                said["necessity"] = f"{plural(stability.necessity.tested, 'kept unit')} removed alone"
            if stability.inertness:
                subsets = 2 * stability.inertness.draws * len(stability.inertness.sizes)
                said["random subsets"] = f"{plural(subsets, 'subset')} added back or removed"
            if stability.null:
                said["permuted models"] = plural(max(1, len(stability.null.permutations)), "permutation")
        return said.get(name, "")


def percentiles(values: Floats) -> Floats:
    """Ranks of values as a fraction of all, from 0 for the lowest to 1; equal values share their mean rank."""
    if len(values) < 2:
        return np.ones(len(values))
    ranks: Floats = (rankdata(values) - 1) / (len(values) - 1)
    return ranks
