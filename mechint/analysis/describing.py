"""The content of result.json: what a run was, what it found and what it cost."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from mechint.checkpoints import Checkpoint
from mechint.data import TokenData
from mechint.learning.recipe import Recipe
from mechint.learning.trainer import MaskTrainer, Training
from mechint.masking import ChannelSpace, MaskedModel, Units
from mechint.masking.head import WholeLogits
from mechint.masking.rotary import has_rotary_embedding
from mechint.methods.method import LearnedMethod, MaskMethod, ScoringMethod
from mechint.metrics.evaluation import faithfulness, loss_degradation_percent
from mechint.results.result import SCHEMA_VERSION
from mechint.runtime.processes import this_process

PACKAGES = ("mechint", "torch", "transformers", "tokenizers", "hydra-core", "numpy")

Record = dict[str, Any]


def start_record(config: Record) -> Record:
    """What is known before anything was read: status `running`, whose process it is, the configuration, versions.

    resumed: the number of steps after which earlier attempts broke off and the run went on.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "error": None,
        "started": now(),
        "finished": None,
        "process": this_process(),
        "resumed": [],
        "config": config,
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that numbers may depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def end_record(record: Record, status: str, error: BaseException | None = None) -> None:
    """Set the final status, the time and, for a failure, the error in one line."""
    record["status"], record["finished"] = status, now()
    if error is not None:
        record["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"


def training_of_all(records: Sequence[Record]) -> Training:
    """What several runs cost together, from their results."""
    costs = [record["cost"] for record in records]
    peaks = [cost["peak_memory_bytes"] for cost in costs if cost.get("peak_memory_bytes")]
    return Training(
        steps=sum(cost["steps"] for cost in costs),
        tokens=sum(cost["tokens"] for cost in costs),
        seconds=sum(cost["seconds"] for cost in costs),
        peak_memory_bytes=max(peaks, default=None),
    )


def now() -> str:
    """The time with its zone, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).astimezone().isoformat(timespec="seconds")


def describe_inputs(record: Record, checkpoint: Checkpoint, data: TokenData) -> None:
    """Say which weights and which tokens the numbers belong to."""
    record["checkpoint"] = {
        "source": checkpoint.source,
        "name": checkpoint.name,
        "sha256": checkpoint.sha256,
        "format": checkpoint.format,
        "architecture": checkpoint.architecture,
        "num_parameters": checkpoint.num_parameters,
    }
    record["dataset"] = {
        "name": data.name,
        "tokenizer": data.tokenizer,
        "sequence_length": data.evaluation.length,
        "calibration_tokens": data.calibration_tokens,
        "evaluation_tokens": data.evaluation_tokens,
        "evaluation_bytes": data.evaluation_bytes,
        "evaluation_digest": data.evaluation_digest,
    }
    record["notes"] = [*checkpoint.notes, *data.notes]


def describe_model(record: Record, masked: MaskedModel) -> None:
    """Add the attention's shape to the checkpoint's entry."""
    layers = masked.space.layers
    record["checkpoint"] |= {
        "num_layers": len(layers),
        "num_query_heads": _one_or_all([layer.num_query_heads for layer in layers]),
        "num_kv_heads": _one_or_all([layer.num_kv_heads for layer in layers]),
        "head_dim": _one_or_all([layer.key_width for layer in layers]),
        "value_dim": _one_or_all([layer.value_width for layer in layers]),
        "attention": masked.implementation,
        "device": str(masked.device),
        "dtype": str(masked.model.dtype).removeprefix("torch."),
    }


def describe_method(record: Record, recipe: Recipe) -> None:
    """Say what was learned and how, in the names of the classes."""
    method = recipe.method
    record["mask"] = {
        "method": type(method).__name__,
        "unit": method.unit,
        "scope": method.scope,
        "ablation": recipe.ablation.name,
        "tie_kv": method.tie_kv,
        "objective": recipe.objective.name,
        "schedule": type(recipe.schedule).__name__,
    }


def settings_without_effect(method: MaskMethod, masked: MaskedModel, trainer: MaskTrainer) -> list[str]:
    """Settings that do nothing in this combination, in words."""
    notes = []
    if trainer.deterministic and masked.device.type == "cpu":
        notes.append("trainer.deterministic has no effect on the CPU, where it is so anyway")
    if isinstance(masked.head, WholeLogits):
        notes.append(
            f"the head of architecture {masked.model.config.model_type!r} is not understood: whole logits are kept and "
            "computed, which takes more memory"
        )
    if method.unit == "rope_pair" and not has_rotary_embedding(masked):
        notes.append(
            "mask.unit=rope_pair has no effect: the model rotates no keys, so every unit is a channel"
        )
    name = type(method).__name__
    if isinstance(method, LearnedMethod) and method.has_learning_rate:
        notes.append(
            f"optimizer.lr and trainer.learning_rate_decay have no effect: {name} has learning rates of its own, "
            "mask.learning_rate, that rise and fall as published"
        )
    if isinstance(method, LearnedMethod) and not method.follows_schedule:
        notes.append(f"sparsity_schedule has no effect: {name} takes the target's count at the end")
    if isinstance(method, ScoringMethod):
        notes.append(f"objective, optimizer, sparsity_schedule and steps have no effect: {name} only scores")
    return notes


def describe_mask(record: Record, units: Units, target: float, keep: Tensor, importance: Tensor) -> None:
    """Add counts of units and channels, over all and per layer, from keep bool [U] and importance float [U]."""
    kept, total = int(keep.sum()), units.count
    record["sparsity"] = {"target": target, "achieved": 1 - kept / total, "total": total, "kept": kept}
    record["channels"] = _count_channels(units.space, units.to_channels(keep))
    for kind, has in (("k", units.has_key), ("v", units.has_value)):
        record["sparsity"][kind] = {"total": int(has.sum()), "kept": int(keep[has].sum())}
    record["layers"] = _layers(units, keep, importance)


def _count_channels(space: ChannelSpace, keep: Tensor) -> Record:
    kind = space.labels()["kind"]
    counts: Record = {"total": len(keep), "kept": int(keep.sum())}
    for number, name in enumerate("kv"):
        counts[name] = {"total": int((kind == number).sum()), "kept": int(keep[kind == number].sum())}
    return counts


def _layers(units: Units, keep: Tensor, importance: Tensor) -> list[Record]:
    layers = []
    for position, shape in enumerate(units.space.layers):
        here = units.layer == position
        key, value = here & units.has_key, here & units.has_value
        layers.append(
            {
                "name": shape.name,
                "index": shape.index,
                "k_kept": int(keep[key].sum()),
                "k_total": int(key.sum()),
                "v_kept": int(keep[value].sum()),
                "v_total": int(value.sum()),
                "sparsity": 1 - float(keep[here].float().mean()),
                "mean_importance": float(importance[here].mean()),
            }
        )
    return layers


def describe_outcome(record: Record, metrics: Record, training: Training) -> None:
    """Add what was measured on evaluation data, and what the run cost."""
    dense, empty, masked = (metrics[name]["loss"] for name in ("dense", "empty", "masked"))
    record["metrics"] = metrics
    record["loss_degradation_percent"] = loss_degradation_percent(dense, masked)
    record["faithfulness"] = faithfulness(dense, empty, masked)
    finishing = training.finishing
    if finishing is not None:
        record["finishing"] = {
            "before": finishing.before,
            "after": finishing.after,
            "tried": finishing.tried,
            "exchanged_units": finishing.exchanged,
        }
    record["binarization_gap"] = None  # there is none for methods that only score
    record["cost"] = {
        "steps": training.steps,
        "batch_size": training.batch_size or None,
        "tokens": training.tokens,
        "seconds": training.seconds,
        "step_seconds": training.seconds / max(training.steps, 1),
        "peak_memory_bytes": training.peak_memory_bytes,
        "dense_cache_bytes": training.dense_cache_bytes,
    }


def describe_binarization(record: Record, soft: Tensor | None, soft_kl: float | None) -> None:
    """Add what making the mask hard cost a learned method, from its final soft gates [U] and their KL, if it has any.

    soft_open: soft gates above 1/2, which no target has set. gap: KL of the hard mask - KL of the soft gates, in nats.
    """
    kl, kept = record["metrics"]["masked"]["kl"], record["sparsity"]["kept"]
    if soft is None or soft_kl is None:
        record["binarization_gap"] = {"soft_kl": kl, "soft_open": kept, "gap": 0.0}
        return
    open_gates = int((soft > 0.5).sum())
    record["binarization_gap"] = {"soft_kl": soft_kl, "soft_open": open_gates, "gap": kl - soft_kl}


def layer_table(record: Record) -> tuple[list[str], list[list[Any]]]:
    """The per-layer entries as columns and rows, for loggers."""
    columns = list(record["layers"][0])
    return columns, [[layer[column] for column in columns] for layer in record["layers"]]


def _one_or_all(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def _version(package: str) -> str | None:
    try:
        return torch.__version__ if package == "torch" else version(package)
    except PackageNotFoundError:
        return None
