"""The Markdown report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mechint.masking.masks import LayerMask
from mechint.reporting import wording
from mechint.reporting.certainty import certainty, seeds_in_words, signed
from mechint.reporting.circuit import circuit_context, interval
from mechint.reporting.finding import cautions, finding, thirds
from mechint.reporting.importance_overview import ImportanceOverview
from mechint.reporting.layer_importance import layer_files
from mechint.reporting.nested import NestedFigure
from mechint.reporting.sparsity_curves import SparsityCurves
from mechint.reporting.stability import StabilityFigure
from mechint.results.result import MODELS, LayerInfo, ModelName
from mechint.results.run_files import RunFiles
from mechint.runtime.files import write_atomically

FILENAME = "circuit_analysis_report.md"

UNITS = {
    "channel": "one K channel or one V channel",
    "rope_pair": "two K channels that are rotated together, or one V channel",
    "head": "all K channels or all V channels of one KV head",
}
TIED_UNITS = {
    "channel": "a K channel together with the V channel of the same number",
    "rope_pair": "two K channels that are rotated together, with the two V channels of the same numbers",
    "head": "all K and V channels of one KV head",
}
MEANINGS: dict[ModelName, str] = {
    "dense": "all channels",
    "empty": "no channels",
    "masked": "the kept channels",
    "complement": "the removed channels",
}


def write_report(run: RunFiles, drawn: Sequence[Path]) -> Path:
    """Write circuit_analysis_report.md into the run's directory; it links the figures in `drawn`."""
    environment = Environment(
        loader=PackageLoader("mechint", "reporting"),
        autoescape=True,  # whatever no filter has made safe is escaped at least
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("text", "code", "number", "percent", "counted", "seconds", "byte_size", "enumeration"):
        environment.filters[name] = getattr(wording, name)
    environment.filters |= {"signed": signed, "interval": interval}
    path = run.directory / FILENAME
    with write_atomically(path) as temporary:
        temporary.write_text(
            environment.get_template("report.md.jinja").render(context(run, drawn)), encoding="utf-8"
        )
    return path


def context(run: RunFiles, drawn: Sequence[Path]) -> dict[str, Any]:
    """What the template may use."""
    result = run.result
    mask, channels = result.mask, result.channels
    stability = result.stability
    files, there = layer_files(run.masks), {path.name for path in drawn}
    return {
        "result": result,
        "model_name": run.model_name,
        "finding": finding(run),
        "shape": shape_in_words(list(run.masks.values())),
        "unit": (TIED_UNITS if mask.tie_kv else UNITS).get(mask.unit, mask.unit),
        "units_are_channels": channels.total == result.sparsity.total,
        "seed": result.seed,
        "stability": stability,
        "seeds": seeds_in_words(stability) if stability else None,
        "certainty": certainty(stability) if stability else [],
        "stability_figure": StabilityFigure.filename if StabilityFigure.filename in there else None,
        "nested": result.nested or [],
        "nested_figure": NestedFigure.filename if NestedFigure.filename in there else None,
        **circuit_context(run, there),
        "cost": result.cost,
        "measured": run.measured,
        "binarization": result.binarization_gap,
        "models": [(name, MEANINGS[name], result.metrics[name]) for name in MODELS],
        "layers": [
            layer_row(run, layer, files[layer.name] if files[layer.name] in there else None)
            for layer in run.layers
        ],
        "thirds": thirds(run),
        "cautions": cautions(run),
        "notes": result.notes,
        "overview": ImportanceOverview.filename if ImportanceOverview.filename in there else None,
        "curves": SparsityCurves.filename if SparsityCurves.filename in there and run.history else None,
    }


def layer_row(run: RunFiles, layer: LayerInfo, figure: str | None) -> dict[str, Any]:
    """A line of the per-layer table: counts are units, `k_channels` and `v_channels` are channels."""
    mask = run.masks[layer.name]
    return {
        **dict(layer),
        "figure": figure,
        "k_channels": (int(mask.k_mask.sum()), mask.k_mask.numel()),
        "v_channels": (int(mask.v_mask.sum()), mask.v_mask.numel()),
    }


def shape_in_words(masks: list[LayerMask]) -> str:
    """'4 layers × 4 KV heads × 32 channels', with K and V apart and ranges where they differ."""
    heads = span([mask.k_mask.shape[0] for mask in masks])
    k, v = (
        span([mask_of.shape[1] for mask_of in kind])
        for kind in zip(*((m.k_mask, m.v_mask) for m in masks), strict=True)
    )
    widths = f"{k} channels" if k == v else f"{k} K and {v} V channels"
    return f"{wording.plural(len(masks), 'layer')} × {heads} KV head{'' if heads == '1' else 's'} × {widths}"


def span(values: list[int]) -> str:
    """'4', or '2 to 4' where the layers differ."""
    return f"{values[0]:,}" if len(set(values)) == 1 else f"{min(values):,} to {max(values):,}"
