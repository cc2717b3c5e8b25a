"""Circuits of several runs against each other: what they share, and what the circuit of one task does on another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from mechint.analysis.saved import AT_ONCE, Run
from mechint.checkpoints import Checkpoint
from mechint.circuits.scores import faithfulness_of, interval_of
from mechint.errors import UserError
from mechint.masking import MaskedModel
from mechint.metrics.agreement import Agreement
from mechint.metrics.evaluation import Evaluator, over_positions, resampled
from mechint.metrics.metric import KL, LOGIT_DIFF, NLL, Metric
from mechint.results.section import Section
from mechint.runtime.files import write_atomically, write_json

JSON, TABLE = "circuits.json", "circuits.md"


class SharedChannels(Section):
    """IoU of the channels that two masks keep; chance: its expectation for random masks with the same counts in every
    layer, kind and KV head. None where the two are in different coordinates, or keep nothing.
    """

    first: str
    second: str
    iou: float | None = None
    chance: float | None = None


class Transfer(Section):
    """The mask of one run on the data of another, under the latter's ablation.

    faithfulness: of the logit difference, of the loss where the data are running text; interval: 95 % over sequences.
    """

    mask: str
    data: str
    faithfulness: float | None = None
    interval: list[float] | None = None
    kl: float | None = None


class Between(Section):
    """Several circuits of one checkpoint."""

    runs: dict[str, str]
    overlap: list[SharedChannels]
    transfer: list[Transfer]

    def faithfulness(self, mask: str, data: str) -> float | None:
        """Of one run's mask on another run's data."""
        return next(one.faithfulness for one in self.transfer if (one.mask, one.data) == (mask, data))

    def write(self, directory: Path) -> list[Path]:
        """Write circuits.json, and the same as Markdown in circuits.md."""
        paths = [directory / JSON, directory / TABLE]
        write_json(paths[0], self.as_json())
        with write_atomically(paths[1]) as temporary:
            temporary.write_text(table(self), encoding="utf-8")
        return paths


@dataclass(frozen=True)
class _Loaded:
    """A run's mask, bool [N], in the model's view that it is made for."""

    view: MaskedModel
    kept: torch.Tensor


def between(runs: Mapping[str, Run | str | Path], device: str = "auto", dtype: str = "auto") -> Between:
    """Overlap and transfer of the masks of two or more runs of one checkpoint; names are free.

    Raises UserError where there are fewer, or where they are of different checkpoints.
    """
    found = {name: run if isinstance(run, Run) else Run.read(run) for name, run in runs.items()}
    if len(found) < 2:
        raise UserError("give two or more runs")
    first = next(iter(found.values()))
    for name, run in found.items():
        if run.result.checkpoint.sha256 != first.result.checkpoint.sha256:
            raise UserError(f"{name} is a run of another checkpoint; circuits are compared within one model")
    checkpoint = first.load_checkpoint(device, dtype, None)
    masked = MaskedModel(checkpoint.model)
    try:
        loaded = {name: _Loaded(*run.mask_on(masked, checkpoint)[:2]) for name, run in found.items()}
        transfer = [one for name, run in found.items() for one in _on(name, run, loaded, masked, checkpoint)]
    finally:
        masked.close()
    return Between(
        runs={name: str(run.directory) for name, run in found.items()},
        overlap=[_shared(one, other, found, loaded) for one, other in combinations(found, 2)],
        transfer=transfer,
    )


def _on(
    name: str, run: Run, loaded: Mapping[str, _Loaded], masked: MaskedModel, checkpoint: Checkpoint
) -> list[Transfer]:
    """All masks on one run's data, under its ablation."""
    data = run.own_data(checkpoint, masked)
    metric: Metric = NLL if data.task is None else LOGIT_DIFF
    found = []
    for other, one in loaded.items():
        ablation = run.ablation_for(one.view, data.calibration, one.kept)
        gates = [None, torch.zeros_like(one.kept), one.kept]
        values = Evaluator(one.view, data.evaluation, ablation, AT_ONCE)(gates, [metric, KL])
        positions = data.evaluation.positions
        draws, means = resampled(values[:, 0], positions), over_positions(values, positions)
        found.append(
            Transfer(
                mask=other,
                data=name,
                faithfulness=float(faithfulness_of(*means[:, 0])),
                interval=interval_of(faithfulness_of(*draws.unbind(1))),
                kl=float(means[2, 1]),
            )
        )
    return found


def _shared(
    first: str, second: str, runs: Mapping[str, Run], loaded: Mapping[str, _Loaded]
) -> SharedChannels:
    found = SharedChannels(first=first, second=second)
    if loaded[first].view.basis is not None or loaded[second].view.basis is not None:
        return found  # numbers of directions mean nothing across bases
    agreement = Agreement.of([runs[name].layer_masks for name in (first, second)])
    if agreement.iou is not None and agreement.chance is not None:
        found.iou, found.chance = agreement.iou.mean, agreement.chance.mean
    return found


def table(found: Between) -> str:
    """Overlap and transfer as Markdown."""
    names = list(found.runs)
    lines = [
        "# Circuits against each other",
        "",
        "IoU of kept channels, in brackets what random masks with the same counts per layer, kind and KV head have:",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    pairs = {frozenset((one.first, one.second)): one for one in found.overlap}
    for row in names:
        cells = []
        for column in names:
            one = pairs.get(frozenset((row, column)))
            known = one is not None and one.iou is not None
            cells.append(
                "1" if row == column else f"{one.iou:.2f} ({one.chance:.2f})" if known and one else "—"
            )
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Faithfulness of the mask of a row on the data of a column, with its 95 % interval over sequences; 1 is the "
        "dense model, 0 the empty one:",
        "",
        "| mask | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    for mask in names:
        cells = []
        for data in names:
            one_way = next(one for one in found.transfer if (one.mask, one.data) == (mask, data))
            low, high = one_way.interval or (float("nan"),) * 2
            cells.append(f"{one_way.faithfulness:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {mask} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
