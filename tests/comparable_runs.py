"""Finished runs made by hand, so that what a comparison must find is known."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from mechint.masking.masks import LayerMask, MaskSet
from mechint.results import Result, RunFiles, save_masks
from mechint.runtime.files import write_json

HEADS, WIDTH = 2, 8
DENSE, EMPTY = 1.0, 5.0


def judged(faithfulness: bool, kl: bool) -> dict[str, Any]:
    """A verdict of two gates, and whether a run passed each."""
    gates = [
        {"gate": "faithfulness >= 0.9", "value": 0.5, "passed": faithfulness},
        {"gate": "kl <= 0.1", "value": None, "passed": kl},
    ]
    return {"overall": "GO" if faithfulness and kl else "NO_GO", "gates": gates}


def layer_mask(k_kept: int, v_kept: int, seed: int = 0, heads: int = HEADS, width: int = WIDTH) -> LayerMask:
    """A layer that keeps so many K and V channels, at random places."""
    generator = torch.Generator().manual_seed(seed)

    def keep(count: int) -> torch.Tensor:
        order = torch.randperm(heads * width, generator=generator)
        return (order < count).view(heads, width)

    k, v = keep(k_kept), keep(v_kept)
    return LayerMask(k, v, k.float(), v.float())


def make_masks(kept: list[tuple[int, int]], seed: int = 0, **shape: int) -> MaskSet:
    """kept: (K, V) channels that each layer keeps."""
    return {
        f"model.layers.{index}.self_attn": layer_mask(k, v, 100 * seed + index, **shape)
        for index, (k, v) in enumerate(kept)
    }


def make_result(masks: MaskSet, *, loss: float = 2.0, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The content of a result.json that fits the masks; changes: "part.key" -> value."""
    layers = [
        {
            "name": name,
            "index": index,
            "k_kept": int(mask.k_mask.sum()),
            "k_total": mask.k_mask.numel(),
            "v_kept": int(mask.v_mask.sum()),
            "v_total": mask.v_mask.numel(),
            "sparsity": mask.sparsity,
            "mean_importance": 0.5,
        }
        for index, (name, mask) in enumerate(masks.items())
    ]
    k = {"total": sum(e["k_total"] for e in layers), "kept": sum(e["k_kept"] for e in layers)}
    v = {"total": sum(e["v_total"] for e in layers), "kept": sum(e["v_kept"] for e in layers)}
    counts = {key: k[key] + v[key] for key in ("total", "kept")}
    achieved = 1 - counts["kept"] / counts["total"]
    numbers = {"dense": DENSE, "empty": EMPTY, "masked": loss, "complement": 4.0}
    result: dict[str, Any] = {
        "schema_version": 1,
        "status": "done",
        "error": None,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "config": {
            "seed": seed,
            "target_sparsity": achieved,
            "optimizer": {"_target_": "a.b.SGD", "lr": 0.1},
        },
        "checkpoint": {"source": "/models/a", "name": "a", "sha256": "aa" * 32, "dtype": "float32"},
        "dataset": {"name": "text", "evaluation_digest": "ee" * 32, "evaluation_tokens": 512},
        "mask": {"method": "TopK", "unit": "channel", "ablation": "zero", "tie_kv": False},
        "sparsity": {"target": achieved, "achieved": achieved, **counts, "k": k, "v": v},
        "channels": {**counts, "k": k, "v": v},
        "metrics": {name: {"loss": value, "kl": value - DENSE} for name, value in numbers.items()},
        "loss_degradation_percent": 100 * (loss - DENSE) / DENSE,
        "faithfulness": (EMPTY - loss) / (EMPTY - DENSE),
        "layers": layers,
        "cost": {"steps": 10},
        "notes": [],
    }
    for path, value in changes.items():
        node = result
        *parts, last = path.split("__")
        for part in parts:
            node = node[part]
        node[last] = value
    identity = repr([result["config"], result["checkpoint"], result["mask"], result["dataset"], masks.keys()])
    result.setdefault("config_digest", hashlib.sha256(identity.encode()).hexdigest()[:16])
    return result


def make_run(
    kept: list[tuple[int, int]],
    *,
    mask_seed: int | None = None,
    shape: dict[str, int] | None = None,
    **told: Any,
) -> RunFiles:
    """A run in memory; told: arguments of make_result."""
    masks = make_masks(kept, told.get("seed", 0) if mask_seed is None else mask_seed, **(shape or {}))
    result = Result.parse(make_result(masks, **told))
    return RunFiles(Path("run") / str(result.config_digest), result, masks, [])


def write_run(directory: Path, kept: list[tuple[int, int]], **told: Any) -> Path:
    """A run on disk."""
    masks = make_masks(kept, told.get("seed", 0))
    write_json(directory / "result.json", make_result(masks, **told))
    save_masks(masks, directory, {})
    return directory
