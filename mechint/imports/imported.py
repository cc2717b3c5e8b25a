"""A run made of masks alone: for masks that another program wrote, with nothing measured."""

from __future__ import annotations

import re
from pathlib import Path

from mechint.masking.masks import LayerMask, MaskSet
from mechint.results import RunFiles
from mechint.results.find import natural
from mechint.results.result import (
    SCHEMA_VERSION,
    Channels,
    CheckpointInfo,
    Count,
    DatasetInfo,
    LayerInfo,
    MaskInfo,
    Metrics,
    Result,
    Sparsity,
)

NOT_RECORDED = "not recorded"


def run_of_masks(path: Path, masks: MaskSet, method: str, tie_kv: bool, notes: list[str]) -> RunFiles:
    """A RunFiles as of a finished run, in which everything that only a measurement can tell is absent (None).

    tie_kv: one mask for K and V, so that a unit is a K channel together with the V channel of the same
    number.
    """
    masks = dict(sorted(masks.items(), key=lambda item: natural(item[0])))
    directory = path if path.is_dir() else path.parent
    return RunFiles(directory, _result(path, masks, method, tie_kv, notes), masks, history=[])


def _result(path: Path, masks: MaskSet, method: str, tie_kv: bool, notes: list[str]) -> Result:
    layers = [
        _layer_info(name, index, mask, tie_kv)
        for (name, mask), index in zip(masks.items(), _indices(list(masks)), strict=True)
    ]
    k = Count(total=sum(layer.k_total for layer in layers), kept=sum(layer.k_kept for layer in layers))
    v = Count(total=sum(layer.v_total for layer in layers), kept=sum(layer.v_kept for layer in layers))
    channels = Channels(total=k.total + v.total, kept=k.kept + v.kept, k=k, v=v)
    units: Count = k if tie_kv else channels
    shape = next(iter(masks.values())).k_mask.shape
    return Result(
        schema_version=SCHEMA_VERSION,
        status="done",
        checkpoint=CheckpointInfo(
            source=str(path),
            name=path.name if path.is_dir() else path.stem,
            format=NOT_RECORDED,
            architecture=NOT_RECORDED,
            num_layers=len(masks),
            num_kv_heads=shape[0],
            head_dim=shape[1],
        ),
        dataset=DatasetInfo(name=NOT_RECORDED, tokenizer=NOT_RECORDED),
        notes=notes,
        mask=MaskInfo(method=method, unit="channel", scope=NOT_RECORDED, ablation="zero", tie_kv=tie_kv),
        sparsity=Sparsity(
            achieved=1 - units.kept / units.total, total=units.total, kept=units.kept, k=k, v=v
        ),
        channels=channels,
        layers=layers,
        metrics=Metrics(),
    )


def _layer_info(name: str, index: int, mask: LayerMask, tie_kv: bool) -> LayerInfo:
    importance = [mask.k_importance] if tie_kv else [mask.k_importance, mask.v_importance]
    return LayerInfo(
        name=name,
        index=index,
        k_kept=int(mask.k_mask.sum()),
        k_total=mask.k_mask.numel(),
        v_kept=int(mask.v_mask.sum()),
        v_total=mask.v_mask.numel(),
        sparsity=mask.sparsity,
        mean_importance=sum(float(part.sum()) for part in importance)
        / sum(part.numel() for part in importance),
    )


def _indices(names: list[str]) -> list[int]:
    """The number in each module path, as in transformer.h.3.attn; positions where those are not unique."""
    numbers = [int(found[0]) for name in names if (found := re.search(r"\d+", name))]
    return numbers if len(set(numbers)) == len(names) else list(range(len(names)))
