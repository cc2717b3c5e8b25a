"""What result.json says of a run: functions that make its sections from the objects of the run."""

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
from mechint.masking.basis import Basis
from mechint.masking.examining import stored_channels
from mechint.masking.head import WholeLogits
from mechint.masking.rotary import has_rotary_embedding
from mechint.methods.bases import PrincipalBasis
from mechint.methods.method import LearnedMethod, MaskMethod, ScoringMethod
from mechint.metrics.evaluation import resampled, standard_error
from mechint.results.result import (
    SCHEMA_VERSION,
    BasisInfo,
    BinarizationGap,
    Channels,
    CheckpointInfo,
    Count,
    DatasetInfo,
    FinishingInfo,
    LayerInfo,
    MaskInfo,
    Result,
    Sparsity,
    Status,
)
from mechint.results.result import (
    Leakage as LeakageInfo,
)
from mechint.runtime.processes import this_process

PACKAGES = ("mechint", "torch", "transformers", "tokenizers", "hydra-core", "numpy")

# The content of the JSON file that a job other than an analysis leaves.
Record = dict[str, Any]


def started_result(config: Record) -> Result:
    """What is known before anything was read: status `running`, whose process it is, the configuration, versions."""
    return Result(
        schema_version=SCHEMA_VERSION,
        status="running",
        error=None,
        started=now(),
        finished=None,
        process=this_process(),
        resumed=[],
        config=config,
        versions=package_versions(),
    )


def end_result(result: Result, status: Status, error: BaseException | None = None) -> None:
    """Set the final status, the time and, for a failure, the error in one line."""
    result.status, result.finished = status, now()
    if error is not None:
        result.error = f"{type(error).__name__}: {' '.join(str(error).split())}"


def start_record(config: Record) -> Record:
    """The same for the record of another job."""
    return started_result(config).as_json()


def end_record(record: Record, status: Status, error: BaseException | None = None) -> None:
    """The same for the record of another job."""
    result = Result(status=status)
    end_result(result, status, error)
    record |= result.as_json()


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that numbers may depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def now() -> str:
    """The time with its zone, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).astimezone().isoformat(timespec="seconds")


def checkpoint_info(checkpoint: Checkpoint, masked: MaskedModel) -> CheckpointInfo:
    """Which weights the numbers belong to, and the attention's shape."""
    layers = masked.space.layers
    return CheckpointInfo(
        source=checkpoint.source,
        name=checkpoint.name,
        sha256=checkpoint.sha256,
        format=checkpoint.format,
        architecture=checkpoint.architecture,
        num_parameters=checkpoint.num_parameters,
        num_layers=len(layers),
        num_query_heads=_one_or_all([layer.num_query_heads for layer in layers]),
        num_kv_heads=_one_or_all([layer.num_kv_heads for layer in layers]),
        head_dim=_one_or_all([layer.key_width for layer in layers]),
        value_dim=_one_or_all([layer.value_width for layer in layers]),
        attention=masked.implementation,
        device=str(masked.device),
        dtype=str(masked.model.dtype).removeprefix("torch."),
        tied_kv_layers=list(checkpoint.attention.tied_layers),
        stated_loss=checkpoint.stated_loss,
    )


def dataset_info(data: TokenData) -> DatasetInfo:
    """Which tokens the numbers belong to."""
    return DatasetInfo(
        name=data.name,
        tokenizer=data.tokenizer,
        sequence_length=data.evaluation.length,
        calibration_tokens=data.calibration_tokens,
        evaluation_tokens=data.evaluation_tokens,
        evaluation_bytes=data.evaluation_bytes,
        evaluation_digest=data.evaluation_digest,
        bos=list(data.bos),
    )


def leakage_info(data: TokenData) -> LeakageInfo | None:
    """How much of the evaluation data also occurs in the calibration data; None where it was not measured."""
    if data.task is not None:
        return LeakageInfo(shared_prompts=data.task.shared_prompts)
    if data.leakage is None:
        return None
    return LeakageInfo(shared_ngrams=data.leakage.shared_ngrams, n=data.leakage.n)


def basis_info(basis: Basis | None, space: ChannelSpace, recipe: Recipe) -> BasisInfo:
    """The coordinates that units are made of."""
    if basis is None:
        return BasisInfo()
    ranks = None if basis.energy is None else effective_ranks(basis.energy, space)
    learned = recipe.basis.learned and not isinstance(recipe.method, ScoringMethod)
    keys, values = basis.names if learned or not recipe.basis.learned else (PrincipalBasis.name,) * 2
    return BasisInfo(
        keys=keys,
        values=values,
        where=basis.keys,
        error=basis.error(),
        passes=recipe.basis.passes,
        parameters=sum(maps.read.numel() for maps in basis.maps) if learned else 0,
        effective_rank=ranks,
    )


def effective_ranks(energy: Tensor, space: ChannelSpace) -> list[dict[str, Any]]:
    """Of every layer and kind, for each KV head: exp(entropy) of what its directions are worth [N], 1 to C."""
    found = []
    for position, kind in space.slices:
        worth = space.view(energy.double().cpu(), position, kind).clamp_min(0)  # [G, C]
        share = worth / worth.sum(-1, keepdim=True).clamp_min(1e-300)
        entropy = -(share * share.clamp_min(1e-300).log()).sum(-1)
        layer = space.layers[position]
        found.append({"layer": layer.index, "name": layer.name, "kind": kind, "rank": entropy.exp().tolist()})
    return found


def mask_info(recipe: Recipe) -> MaskInfo:
    """What is learned and how, in the names of the classes."""
    method = recipe.method
    return MaskInfo(
        method=type(method).__name__,
        importance=method.meaning,
        unit=method.unit,
        scope=method.scope,
        ablation=recipe.ablation.name,
        tie_kv=method.tie_kv,
        objective=recipe.objective.name,
        surrogate_of=recipe.objective.stands_for,
        schedule=type(recipe.schedule).__name__,
    )


def settings_without_effect(
    recipe: Recipe, masked: MaskedModel, trainer: MaskTrainer, target_sparsity: float
) -> list[str]:
    """Settings that do nothing in this combination, in words."""
    method = recipe.method
    notes = []
    if trainer.deterministic and masked.device.type == "cpu":
        notes.append("trainer.deterministic has no effect on the CPU, where it is so anyway")
    if isinstance(masked.head, WholeLogits):
        notes.append(
            f"the head of architecture {masked.model.config.model_type!r} is not understood: whole logits are kept and "
            "computed, which takes more memory"
        )
    if method.key_sparsity is not None and method.value_sparsity is not None:
        given = units_target(method)
        if given is not None and abs(given - target_sparsity) > 0.5 / method.units.count:
            notes.append(
                f"target_sparsity={target_sparsity:g} has no effect: mask.key_sparsity={method.key_sparsity:g} and "
                f"mask.value_sparsity={method.value_sparsity:g} give {given:.4g}"
            )
    if trainer.finishing_share != MaskTrainer.finishing_share and trainer.passes is None:
        notes.append("trainer.finishing_share has no effect without trainer.passes")
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
        idle = (
            "optimizer, sparsity_schedule and steps have"
            if method.finishing_trials
            else ("objective, optimizer, sparsity_schedule and steps have")
        )
        notes.append(f"{idle} no effect: {name} only scores")
        if recipe.basis.learned:
            notes.append(
                f"basis=learned is basis=principal here: {name} takes no steps in which directions could be learned"
            )
    return notes


def units_target(method: MaskMethod) -> float | None:
    """The fraction of units that a method prepared with targets for K and V removes in all."""
    kept = int(method.pools.quotas(1.0).sum())
    return 1 - kept / method.units.count


def sparsity_of(units: Units, target: float, keep: Tensor) -> Sparsity:
    """How many units are kept, from keep bool [U]."""
    kept, total = int(keep.sum()), units.count
    k, v = (
        Count(total=int(has.sum()), kept=int(keep[has].sum())) for has in (units.has_key, units.has_value)
    )
    return Sparsity(target=target, achieved=1 - kept / total, total=total, kept=kept, k=k, v=v)


def channels_of(units: Units, keep: Tensor, tied_layers: Sequence[int] = ()) -> Channels:
    """How many channels are kept, from keep bool [U]; tied_layers: those whose keys and values are the same."""
    kept, kind = units.to_channels(keep), units.space.labels()["kind"]
    k, v = (
        Count(total=int((kind == number).sum()), kept=int(kept[kind == number].sum())) for number in (0, 1)
    )
    stored = None
    if tied_layers:
        everything = torch.ones_like(kept)
        stored = Count(
            total=stored_channels(units.space, everything, tied_layers),
            kept=stored_channels(units.space, kept, tied_layers),
        )
    return Channels(total=len(kept), kept=int(kept.sum()), k=k, v=v, stored=stored)


def layers_of(units: Units, keep: Tensor, importance: Tensor) -> list[LayerInfo]:
    """What each layer keeps, from keep bool [U] and importance float [U]."""
    layers = []
    for position, shape in enumerate(units.space.layers):
        here = units.layer == position
        key, value = here & units.has_key, here & units.has_value
        layers.append(
            LayerInfo(
                name=shape.name,
                index=shape.index,
                k_kept=int(keep[key].sum()),
                k_total=int(key.sum()),
                v_kept=int(keep[value].sum()),
                v_total=int(value.sum()),
                sparsity=1 - float(keep[here].float().mean()),
                mean_importance=float(importance[here].mean()),
            )
        )
    return layers


def finishing_info(training: Training, objective: str) -> FinishingInfo | None:
    """What the finishing pass gained; None where there was none."""
    done = training.finishing
    if done is None:
        return None
    return FinishingInfo(
        objective=objective,
        before=done.before,
        after=done.after,
        tried=done.tried,
        exchanged_units=done.exchanged,
        tokens=done.tokens,
        seconds=done.seconds,
    )


def binarization_gap(
    kl: Tensor,
    kept: int,
    soft: Tensor | None,
    soft_kl: Tensor | None,
    positions: Tensor,
    documents: Tensor | None = None,
) -> BinarizationGap:
    """What making the mask hard cost a learned method.

    kl, kept: KL on every sequence, double [M], and kept units of the hard mask. soft, soft_kl: final soft gates [U] and
    their KL, [M]; None for a method whose gates are hard while it learns. positions: how many of each sequence count.
    documents: the document of each, where known.
    """
    own = kl if soft_kl is None else soft_kl
    both = torch.stack([own, kl - own])
    means = (both * positions).sum(-1) / positions.sum()
    errors = [standard_error(samples) for samples in resampled(both, positions, documents).unbind(1)]
    return BinarizationGap(
        soft_kl=float(means[0]),
        soft_kl_se=errors[0],
        soft_open=kept if soft is None else int((soft > 0.5).sum()),
        gap=float(means[1]),
        gap_se=errors[1],
    )


def _one_or_all(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def _version(package: str) -> str | None:
    try:
        return torch.__version__ if package == "torch" else version(package)
    except PackageNotFoundError:
        return None
