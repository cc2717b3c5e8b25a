"""The channels of masks as arrays: layer by layer, K before V, head by head, as in the table of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mechint.errors import UserError
from mechint.masking.masks import LayerMask
from mechint.masking.space import KINDS
from mechint.results.run_files import RunFiles, read_masks

Array = np.ndarray


def flat(masks: Sequence[LayerMask], what: str) -> Array:
    """One tensor of every layer, "mask" or "importance", in one array [N]."""
    parts = [getattr(mask, f"{kind}_{what}").flatten() for mask in masks for kind in KINDS]
    return np.asarray(torch.cat(parts).cpu().numpy())


def layout(run: RunFiles) -> list[dict[str, Any]]:
    """Name, number and shapes [G, C] of every layer: all that is needed to find a channel in the arrays."""
    return [
        {
            "name": layer.name,
            "index": layer.index,
            "k": list(run.masks[layer.name].k_mask.shape),
            "v": list(run.masks[layer.name].v_mask.shape),
        }
        for layer in run.layers
    ]


def columns_of(run: RunFiles) -> dict[str, Array]:
    """What is known of every channel.

    importance, kept; share: what a direction is worth to its head, where the basis tells; unit: its number, where
    several channels share one; and of several seeds: frequency, how many keep
    it; necessity and its standard error in nats per token, NaN where it was not measured.
    """
    masks = run.layer_masks
    columns = {
        "importance": flat(masks, "importance").astype(np.float32),
        "kept": flat(masks, "mask").astype(bool),
    }
    if run.energy is not None and run.energy.numel() == columns["kept"].size:
        columns["share"] = run.energy.float().cpu().numpy()
    units = run.channels_frame()["unit"]
    if not units.isna().any() and units.nunique() < len(units):
        columns["unit"] = units.to_numpy(dtype=np.int32)
    if run.evidence is not None and run.result.stability is not None:
        parts = [run.evidence[layer.name, kind] for layer in run.layers for kind in KINDS]

        def of_seeds(name: str) -> Array:
            return np.asarray(
                torch.cat([getattr(part, name).flatten().float() for part in parts]).cpu().numpy()
            )

        seeds = len(run.result.stability.seeds)
        columns["frequency"] = np.rint(of_seeds("frequency") * seeds).clip(0, 255).astype(np.uint8)
        necessity = of_seeds("necessity")
        if np.isfinite(necessity).any():
            columns["necessity"] = necessity
            columns["necessity_error"] = of_seeds("necessity_error")
    return columns


def measured_points(run: RunFiles, columns: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Masks whose numbers are known: the run's own, and those of nested targets; by kept units.

    threshold: such that exactly the units of at least this importance are in the mask; None where there is no such
    number, since finishing exchanged units. kept: units.
    """
    own = run.result
    points = [
        {
            "kept": own.sparsity.kept,
            "sparsity": own.sparsity.achieved,
            "loss": own.metrics.masked.loss,
            "loss_se": own.metrics.masked.loss_se,
            "kl": own.metrics.masked.kl,
            "kl_se": own.metrics.masked.kl_se,
            "faithfulness": own.faithfulness,
            "threshold": threshold_of(columns["importance"], columns["kept"]),
            "directory": "",
        }
    ]
    for point in own.nested or []:
        if point.kept == own.sparsity.kept:
            continue
        masked = point.metrics.masked
        points.append(
            {
                "kept": point.kept,
                "sparsity": point.achieved,
                "loss": masked.loss,
                "loss_se": masked.loss_se,
                "kl": masked.kl,
                "kl_se": masked.kl_se,
                "faithfulness": point.faithfulness,
                "threshold": _threshold_of_part(run, point.directory, columns["importance"]),
                "directory": point.directory,
            }
        )
    return sorted(points, key=lambda point: point["kept"])


def threshold_of(importance: Array, kept: Array) -> float | None:
    """The least importance of a kept channel, where it is more than that of every removed one."""
    inside, outside = importance[kept], importance[~kept]
    if not inside.size:
        return None
    least = float(inside.min())
    return least if not outside.size or float(outside.max()) < least else None


def _threshold_of_part(run: RunFiles, directory: str, importance: Array) -> float | None:
    try:
        masks = read_masks(run.directory / directory)
        kept = flat([masks[layer.name] for layer in run.layers], "mask").astype(bool)
    except (
        UserError,
        OSError,
        KeyError,
    ):  # a directory that was moved away or is another's: nothing can be said of it
        return None
    return threshold_of(importance, kept) if kept.size == importance.size else None
