"""Try a mask method on planted models, over several models and seeds."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from mechint.analysis.describing import Record, end_record, mask_info, start_record
from mechint.errors import UserError
from mechint.learning.recipe import Recipe
from mechint.learning.trainer import MaskTrainer, Training
from mechint.masking.masked_model import MaskedModel
from mechint.metrics.evaluation import Evaluator
from mechint.results.directories import refuse_run
from mechint.runtime.files import write_atomically, write_json
from mechint.validation.induction import Induction
from mechint.validation.planted import Planted, purpose

VALIDATION, TABLE = "validation.json", "table.md"

MEANS = (
    "kept",
    "units",
    "chance",
    "precision",
    "recall",
    "kl",
    "empty_kl",
    "explained",
    "seconds",
    "cpu_seconds",
)

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Validation:
    """One method, learned as in an analysis, on planted models drawn with `seeds` seeds from `seed` on.

    The target sparsity is that of the truth, so exactly as many units are kept as are planted. models: by name.
    """

    models: Mapping[str, Induction]
    make_recipe: Callable[[], Recipe]
    trainer: MaskTrainer
    seed: int
    seeds: int

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UserError(f"seeds={self.seeds} must be at least 1")
        if not 0 <= self.seed < 2**63 - self.seeds:
            raise UserError(f"seed={self.seed} must be a whole number from 0 to 2^63 - 1")
        if not self.models:
            raise UserError("planted names no model; use planted=all or one of conf/planted")

    def run(self, output_dir: Path, config: Record) -> Record:
        """Learn on every model and seed; write validation.json after each, table.md at the end; return the record."""
        refuse_run(output_dir)
        record = start_record(config)
        recipe = self._recipe()
        record["mask"] = {**mask_info(recipe).as_json(), "steps": recipe.steps}
        self._warn(recipe)
        record["models"] = {}
        write_json(output_dir / VALIDATION, record)
        try:
            for name, model in self.models.items():
                runs: list[Record] = []
                for seed in range(self.seed, self.seed + self.seeds):
                    runs.append(self._run_one(model, seed))
                    record["models"][name] = {"summary": summary(runs), "seeds": runs}
                    write_json(output_dir / VALIDATION, record)
                    log.info("%s", seed_line(name, runs[-1]))
        except BaseException as error:
            end_record(record, "failed", error)
            write_json(output_dir / VALIDATION, record)
            raise
        end_record(record, "done")
        write_json(output_dir / VALIDATION, record)
        with write_atomically(output_dir / TABLE) as path:
            path.write_text(table(record), encoding="utf-8")
        return record

    def _recipe(self) -> Recipe:
        recipe = self.make_recipe()
        if recipe.method.tie_kv:
            raise UserError("planted keys and values are units of their own; use mask.tie_kv=false")
        return recipe

    def _warn(self, recipe: Recipe) -> None:
        """Say which settings do not mean what they seem to mean."""
        method = recipe.method
        for name, model in self.models.items():
            if method.unit not in ("channel", model.unit):
                log.warning("mask.unit=%s has no effect: planted.%s.unit=%s", method.unit, name, model.unit)
        if recipe.objective.name != "kl":
            log.warning(
                "the planted truth is defined by the KL; objective=%s may have another", recipe.objective.name
            )

    def _run_one(self, model: Induction, seed: int) -> Record:
        """Plant, learn and compare."""
        recipe = self._recipe()
        planted = model.plant(seed, recipe.ablation)
        started = time.process_time()
        view, keep, training = self.learn(planted, recipe)
        cpu_seconds = time.process_time() - started
        found = planted.recovery(keep) if view.basis is None else planted.recovery_in_basis(view, keep)
        certificate = planted.certificate
        return {
            "seed": seed,
            "units": planted.units.count,
            "planted": int(planted.truth.sum()) if view.basis is None else int(planted.needed.sum()),
            "chance": planted.chance,
            **asdict(found),
            "empty_kl": certificate.empty_kl,
            "truth_kl": certificate.truth_kl,
            "explained": 1 - found.kl / certificate.empty_kl,
            "seconds": training.seconds,
            "cpu_seconds": cpu_seconds,
            "tokens": training.tokens,
        }

    def learn(self, planted: Planted, recipe: Recipe) -> tuple[MaskedModel, Tensor, Training]:
        """Let a method find as many units as are planted; the model in the recipe's basis, the hard mask, bool [U], and
        what it cost.
        """
        generator = torch.Generator().manual_seed(planted.seed)
        method, recipe.ablation = recipe.method, planted.ablation
        method.unit = planted.unit
        at_once = self.trainer.fit.size
        seen = Evaluator(planted.masked, planted.calibration, recipe.ablation, at_once)
        view = recipe.basis.fit(seen, planted.seed)
        recipe.ablation = recipe.ablation.fit(view, planted.calibration, at_once)
        method.prepare(view, planted.target_sparsity(view), generator)
        training = self.trainer.train(view, planted.calibration, recipe, generator)
        return view, method.pools.select(training.scores).cpu(), training


def summary(runs: list[Record]) -> Record:
    """Means over seeds, the worst KL, the share of exact recoveries, and how often each kind of unit was mistaken."""
    exact = [run["exact"] for run in runs if run["exact"] is not None]
    means: Record = {}
    for name in MEANS:
        values = [run[name] for run in runs if run[name] is not None]
        means[name] = fmean(values) if values else None
    mistakes = {
        name: dict(Counter(purpose(label) for run in runs for label in run[name]).most_common())
        for name in ("missed", "wrong")
    }
    return {
        **means,
        "worst_kl": max(run["kl"] for run in runs),
        "exact": sum(exact) if exact else None,
        "seeds": len(runs),
        **mistakes,
    }


def seed_line(name: str, run: Record) -> str:
    """One run in one line."""
    exact = {True: "exact", False: "not exact", None: "no truth"}[run["exact"]]
    kept = f"kept {run['kept']} of {run['units']}"
    found = (
        f"precision {_number(run['precision'])}, recall {_number(run['recall'])}, KL {run['kl']:.2e}, {exact}"
    )
    return (
        f"{name} seed {run['seed']}: {kept}, {found}, {run['seconds']:.1f} s (CPU {run['cpu_seconds']:.1f} s)"
    )


COLUMNS = {
    "planted": "model",
    "k": "k of units",
    "precision": "precision",
    "recall": "recall",
    "chance": "chance",
    "kl": "KL at k (worst)",
    "explained": "explained",
    "exact": "exact",
    "seconds": "seconds (CPU)",
}


def table(record: Record) -> str:
    """A Markdown table of all models, and which kinds of units were missed or wrongly kept."""
    mask = record["mask"]
    lines = [
        f"# {mask['method']} against planted truth",
        "",
        f"{mask['ablation']} ablation, objective {mask['objective']}, {mask['steps']} steps. KL in nats, mean over all "
        "positions of held-out rows, hard mask. Explained: 1 - KL / KL of the empty model.",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += [_row(name, model["summary"]) for name, model in record["models"].items()]
    for name, model in record["models"].items():
        lines += _mistakes(name, model["summary"])
    return "\n".join(lines) + "\n"


def _row(name: str, total: Record) -> str:
    cells = [
        name,
        f"{total['kept']:.0f} of {total['units']:.0f}",
        _number(total["precision"]),
        _number(total["recall"]),
        _number(total["chance"]) if total["precision"] is not None else "-",
        f"{total['kl']:.2e} ({total['worst_kl']:.2e})",
        f"{total['explained']:.3f}",
        "-" if total["exact"] is None else f"{total['exact']} of {total['seeds']}",
        f"{total['seconds']:.1f} ({total['cpu_seconds']:.1f})",
    ]
    return "| " + " | ".join(cells) + " |"


def _mistakes(name: str, total: Record) -> list[str]:
    told = [
        f"{what} " + ", ".join(f"{text} ({count / total['seeds']:.1f})" for text, count in total[key].items())
        for key, what in (("missed", "misses"), ("wrong", "wrongly keeps"))
        if total[key]
    ]
    return ["", f"{name}, units per seed: {'; '.join(told)}"] if told else []


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
