"""A run made of masks alone: for masks that another program wrote, with nothing measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mechint.masking.masks import LayerMask, MaskSet
from mechint.results import RunFiles
from mechint.results.find import natural
from mechint.results.identity import SCHEMA_VERSION

NOT_RECORDED = "not recorded"


def run_of_masks(path: Path, masks: MaskSet, method: str, tie_kv: bool, notes: list[str]) -> RunFiles:
    """A RunFiles as of a finished run, in which everything that only a measurement can tell is absent (None).

    tie_kv: one mask for K and V, so that a unit is a K channel together with the V channel of the same
    number.
    """
    masks = dict(sorted(masks.items(), key=lambda item: natural(item[0])))
    directory = path if path.is_dir() else path.parent
    return RunFiles(directory, _result(path, masks, method, tie_kv, notes), masks, history=[])


def _result(path: Path, masks: MaskSet, method: str, tie_kv: bool, notes: list[str]) -> dict[str, Any]:
    layers = [
        _layer_entry(name, index, mask, tie_kv)
        for (name, mask), index in zip(masks.items(), _indices(list(masks)), strict=True)
    ]
    k = {"total": sum(e["k_total"] for e in layers), "kept": sum(e["k_kept"] for e in layers)}
    v = {"total": sum(e["v_total"] for e in layers), "kept": sum(e["v_kept"] for e in layers)}
    channels = {name: k[name] + v[name] for name in ("total", "kept")}
    units = k if tie_kv else channels
    shape = next(iter(masks.values())).k_mask.shape
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "done",
        "error": None,
        "started": None,
        "finished": None,
        "config": {},
        "config_digest": None,
        "checkpoint": {
            "source": str(path),
            "name": path.name if path.is_dir() else path.stem,
            "sha256": None,
            "format": NOT_RECORDED,
            "architecture": NOT_RECORDED,
            "num_layers": len(masks),
            "num_kv_heads": shape[0],
            "head_dim": shape[1],
            "num_parameters": None,
        },
        "dataset": {
            "name": NOT_RECORDED,
            "tokenizer": NOT_RECORDED,
            "calibration_tokens": None,
            "evaluation_tokens": None,
            "evaluation_digest": None,
        },
        "mask": {
            "method": method,
            "unit": "channel",
            "scope": NOT_RECORDED,
            "ablation": "zero",
            "tie_kv": tie_kv,
            "objective": None,
            "schedule": None,
        },
        "sparsity": {"target": None, "achieved": 1 - units["kept"] / units["total"], **units, "k": k, "v": v},
        "channels": {**channels, "k": k, "v": v},
        "metrics": {model: {} for model in ("dense", "empty", "masked", "complement")},
        "loss_degradation_percent": None,
        "faithfulness": None,
        "layers": layers,
        "cost": {},
        "notes": notes,
    }


def _layer_entry(name: str, index: int, mask: LayerMask, tie_kv: bool) -> dict[str, Any]:
    importance = [mask.k_importance] if tie_kv else [mask.k_importance, mask.v_importance]
    return {
        "name": name,
        "index": index,
        "k_kept": int(mask.k_mask.sum()),
        "k_total": mask.k_mask.numel(),
        "v_kept": int(mask.v_mask.sum()),
        "v_total": mask.v_mask.numel(),
        "sparsity": mask.sparsity,
        "mean_importance": sum(float(part.sum()) for part in importance)
        / sum(part.numel() for part in importance),
    }


def _indices(names: list[str]) -> list[int]:
    """The number in each module path, as in transformer.h.3.attn; positions where those are not unique."""
    numbers = [int(found[0]) for name in names if (found := re.search(r"\d+", name))]
    return numbers if len(set(numbers)) == len(names) else list(range(len(names)))
