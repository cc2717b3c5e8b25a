"""Figures and report from synthetic run files: no model, no data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread

from mechint.errors import UserError
from mechint.masking.masks import LayerMask, save_masks
from mechint.reporting import ImportanceOverview, LayerImportance, RunFiles, SparsityCurves, Visualizer
from mechint.reporting import style, wording
from mechint.reporting.finding import cautions, finding, thirds
from mechint.reporting.layer_importance import layer_files

FIGURES = [ImportanceOverview(), LayerImportance(), SparsityCurves()]
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Shape:
    """A made-up model: layers, KV heads, K channels, V channels."""

    layers: int
    heads: int
    k: int
    v: int
    names: str = "transformer.h.{}.attn"


SHAPES = {
    "4 layers": Shape(4, 4, 32, 32),
    "6 layers": Shape(6, 12, 64, 64),
    "30 layers, grouped queries": Shape(30, 3, 64, 64, "model.layers.{}.self_attn"),
    "wider keys": Shape(3, 2, 24, 16),
    "one channel": Shape(1, 1, 1, 1),
}


def make_masks(shape: Shape, sparsity: float, seed: int = 0) -> dict[str, LayerMask]:
    """Global top-k of made-up scores in which some layers and heads matter more."""
    generator = torch.Generator().manual_seed(seed)

    def scores(width: int, bias: float) -> torch.Tensor:
        depth = torch.linspace(0, 1, shape.layers)[:, None, None]
        heads = 1.4 * torch.randn(shape.layers, shape.heads, 1, generator=generator)
        return (
            torch.randn(shape.layers, shape.heads, width, generator=generator) + heads + bias - 1.2 * depth
        )  # [L, G, C]

    k, v = scores(shape.k, 0.0), scores(shape.v, 0.4)
    flat = torch.cat([k.flatten(), v.flatten()])
    keep = torch.zeros(len(flat), dtype=torch.bool)
    keep[flat.argsort(descending=True)[: round((1 - sparsity) * len(flat))]] = True
    importance = torch.sigmoid(flat - 1)
    split = k.numel()

    def cut(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return values[:split].view_as(k), values[split:].view_as(v)

    (k_keep, v_keep), (k_importance, v_importance) = cut(keep), cut(importance)
    return {
        shape.names.format(i): LayerMask(k_keep[i], v_keep[i], k_importance[i], v_importance[i])
        for i in range(shape.layers)
    }


def totals(masks: dict[str, LayerMask]) -> dict[str, Any]:
    """The `channels` entry of result.json."""
    k = {
        "total": sum(m.k_mask.numel() for m in masks.values()),
        "kept": sum(int(m.k_mask.sum()) for m in masks.values()),
    }
    v = {
        "total": sum(m.v_mask.numel() for m in masks.values()),
        "kept": sum(int(m.v_mask.sum()) for m in masks.values()),
    }
    return {"total": k["total"] + v["total"], "kept": k["kept"] + v["kept"], "k": k, "v": v}


def make_result(masks: dict[str, LayerMask], target: float) -> dict[str, Any]:
    """A finished run's result.json with units = channels."""
    channels = totals(masks)
    layers = [
        {
            "name": name, "index": i, "k_kept": int(m.k_mask.sum()), "k_total": m.k_mask.numel(), "v_kept": int(m.v_mask.sum()),
            "v_total": m.v_mask.numel(), "sparsity": m.sparsity,
            "mean_importance": float(torch.cat([m.k_importance.flatten(), m.v_importance.flatten()]).mean()),
        }
        for i, (name, m) in enumerate(masks.items())
    ]  # fmt: skip

    def numbers(loss: float, kl: float, agreement: float) -> dict[str, float]:
        return {
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_byte": loss / math.log(2),
            "kl": kl,
            "top1_agreement": agreement,
        }

    return {
        "schema_version": 1, "status": "done", "error": None, "config": {"seed": 7},
        "checkpoint": {
            "source": "bundled:baseline", "name": "baseline", "sha256": "0123456789abcdef" * 4, "format": "bundled",
            "architecture": "gpt2", "num_layers": len(masks), "num_kv_heads": 4, "head_dim": 32, "num_parameters": 842_496,
        },
        "dataset": {
            "name": "python_docs", "tokenizer": "bytes", "calibration_tokens": 131_072, "evaluation_tokens": 32_768,
            "evaluation_digest": "f" * 64,
        },
        "mask": {
            "method": "top_k", "unit": "channel", "scope": "global", "ablation": "zero", "tie_kv": False, "objective": "kl",
            "schedule": "cubic",
        },
        "sparsity": {"target": target, "achieved": 1 - channels["kept"] / channels["total"], **channels},
        "channels": channels,
        "metrics": {
            "dense": numbers(1.4683, 0.0, 1.0), "empty": numbers(5.1274, 3.9, 0.08), "masked": numbers(2.8102, 1.3, 0.51),
            "complement": numbers(4.31, 2.9, 0.17),
        },
        "loss_degradation_percent": 91.39, "faithfulness": 0.6333, "layers": layers, "notes": [],
        "cost": {"steps": 300, "tokens": 614_400, "seconds": 63.2, "step_seconds": 0.21, "peak_memory_bytes": 412_000_000},
    }  # fmt: skip


def make_history(steps: int, target: float, temperature: bool) -> list[dict[str, Any]]:
    """A cubic schedule with a noisy objective."""
    noise = np.random.default_rng(0)
    history = []
    for step in range(0, steps + 1):
        sparsity = target * (1 - (1 - step / max(1, steps)) ** 3)
        history.append(
            {
                "step": step, "loss": 1.3 * sparsity**6 * float(noise.uniform(0.8, 1.2)), "scheduled_sparsity": sparsity,
                "sparsity": round(sparsity * 1024) / 1024, "temperature": 2.0 * 0.02 ** (step / max(1, steps)) if temperature else None,
                "learning_rate": 0.1, "changed_units": int(20 * noise.uniform() + 40 * (1 - step / max(1, steps))),
            }
        )  # fmt: skip
    return history


def make_run(
    directory: Path, shape: Shape, target: float = 0.9, steps: int = 20, temperature: bool = True
) -> RunFiles:
    """A synthetic run that has written nothing yet."""
    masks = make_masks(shape, target)
    return RunFiles(directory, make_result(masks, target), masks, make_history(steps, target, temperature))


def write_run(run: RunFiles) -> Path:
    """Write what an analysis leaves, figures and report apart."""
    save_masks(run.masks, run.directory, {})
    (run.directory / "result.json").write_text(json.dumps(run.result))
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in run.history))
    return run.directory
