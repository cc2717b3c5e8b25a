"""The Markdown report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from mechint.masking.masks import LayerMask
from mechint.metrics.statistics import digits_for
from mechint.reporting import finding, wording
from mechint.reporting.certainty import certainty, proofs_in_words, seeds_in_words, signed
from mechint.reporting.circuit import CircuitFigure, circuit_facts
from mechint.reporting.circuit_pictures import CircuitDiagram, CircuitHeads, CircuitPatterns
from mechint.reporting.context import KINDS, Context
from mechint.reporting.layer_importance import LayerImportance, layer_stems
from mechint.reporting.nested import NestedFigure
from mechint.reporting.overview import ImportanceOverview, SurvivalMap
from mechint.reporting.ranks import RankFigure
from mechint.reporting.sparsity_curves import SparsityCurves
from mechint.reporting.stability import StabilityFigure
from mechint.reporting.templates import environment
from mechint.results import verdict
from mechint.results.result import MODELS, LayerInfo, ModelName
from mechint.runtime.files import write_atomically

FILENAME = "circuit_analysis_report.md"

UNITS = {
    "channel": "one K {} or one V {}",
    "rope_pair": "two K channels that are rotated together, or one V channel",
    "head": "all K {}s or all V {}s of one KV head",
}
TIED_UNITS = {
    "channel": "a K {} together with the V {} of the same number",
    "rope_pair": "two K channels that are rotated together, with the two V channels of the same numbers",
    "head": "all K and V {}s of one KV head",
}
MEANINGS: dict[ModelName, str] = {
    "dense": "all {}s",
    "empty": "no {}s",
    "masked": "the kept {}s",
    "complement": "the removed {}s",
}
# What goes when a unit is removed, and what a cache can leave out.
REMOVED_KEYS = {
    "channels": "one number of the key as attention sees it (after the rotation, where there is one); its term drops "
    "out of the logits, and a cache need not hold that number",
    "after_rope": "one direction of the key as attention sees it (after the rotation, where there is one); a cache can "
    "hold the coordinates along kept directions only, and queries are read in the same coordinates",
    "before_rope": "one direction of the key before the rotation; a cache can hold the kept coordinates of the "
    "unrotated key only, and keys are put together and rotated again whenever they are read: it saves memory, "
    "not that work",
}
REMOVED_VALUES = {
    "channels": "one number of the value; it drops out of the head's output, and a cache need not hold it",
    "direction": "one direction of the value; a cache can hold the kept coordinates only, and the way back belongs "
    "into the output projection",
}
LINKED = (
    CircuitDiagram,
    CircuitFigure,
    CircuitHeads,
    CircuitPatterns,
    ImportanceOverview,
    NestedFigure,
    RankFigure,
    SparsityCurves,
    StabilityFigure,
    SurvivalMap,
)


@cache
def _environment() -> Environment:
    """What renders the template, which is compiled once in a process."""
    made = environment("mechint", "reporting")
    made.filters["signed"] = signed
    return made


def write_report(context: Context, drawn: Sequence[Path]) -> Path:
    """Write circuit_analysis_report.md into the run's directory; it links the figures in `drawn`."""
    path = context.run.directory / FILENAME
    text = _environment().get_template("report.md.jinja").render(told(context, drawn))
    with write_atomically(path) as temporary:
        # An apostrophe needs no escape outside of attributes, and Markdown is read as it stands, too.
        temporary.write_text(text.replace("&#39;", "'"), encoding="utf-8")
    return path


def told(context: Context, drawn: Sequence[Path]) -> dict[str, Any]:
    """What the template may use."""
    run, result, stability = context.run, context.result, context.result.stability
    files = {path.stem: path.name for path in drawn}
    stems, noun = layer_stems(run.masks), context.noun
    unit = (TIED_UNITS if result.mask.tie_kv else UNITS).get(result.mask.unit, result.mask.unit)
    recovered = None
    if (kl := result.metrics.masked.kl) is not None and (empty := result.metrics.empty.kl):
        recovered = 1 - kl / empty
    return {
        "context": context,
        "result": result,
        "noun": noun,
        "model_name": run.model_name,
        "finding": finding.finding(context),
        "cautions": finding.cautions(context),
        "thirds": finding.thirds(context),
        "shape": shape_in_words(list(run.masks.values())),
        "unit": unit.replace("{}", noun),
        "removed": removed_in_words(context),
        "cache": cache_in_words(context),
        "units_are_channels": result.channels.total == result.sparsity.total,
        "seeds": seeds_in_words(stability) if stability else None,
        "certainty": certainty(stability, noun) if stability else [],
        "proofs": proofs_in_words(result.proofs, recovered) if result.proofs else [],
        "objective": result.mask.objective or (result.finishing and result.finishing.objective),
        "models": [(name, MEANINGS[name].replace("{}", noun), result.metrics[name]) for name in MODELS],
        "rises": {name: rise_in_words(context, name) for name in MODELS},
        "layers": [layer_row(context, layer, files.get(stems[layer.name])) for layer in context.layers],
        "figures": {figure.stem: files.get(figure.stem) for figure in LINKED},
        "sheet": files.get(LayerImportance.sheet),
        "picture": picture,
        "limits": [measure.in_words() for measure in verdict.MEASURES],
        "verdicts": verdict,
        **circuit_facts(context),
    }


def picture(words: str, file: str) -> Markup:
    """A figure shown in the report; a link to it where Markdown cannot show its format."""
    shown = "" if file.endswith(".pdf") else "!"
    return Markup(f"{shown}[{words}]({file})")


def rise_in_words(context: Context, name: ModelName) -> str:
    """By how much a model's loss is above the dense model's; the error is that of the difference where it is known."""
    result, model = context.result, context.result.metrics[name]
    dense, error = result.metrics.dense.loss, result.loss_degradation_percent_se
    if model.loss is None or dense is None:
        return wording.ABSENT
    if name == "masked" and error is not None:
        return wording.measured(model.loss - dense, error * dense / 100)
    return "0" if name == "dense" else wording.number(model.loss - dense, digits_for(model.loss_se, 3))


def removed_in_words(context: Context) -> list[str]:
    """What goes with each removed unit, K and V, and what a cache saves by it."""
    basis = context.result.basis
    keys = basis.where if basis is not None and basis.keys != "channels" else "channels"
    values = "direction" if basis is not None and basis.values != "channels" else "channels"
    return [f"K: {REMOVED_KEYS[keys]}", f"V: {REMOVED_VALUES[values]}"]


def cache_in_words(context: Context) -> str:
    """How many numbers per token a cache holds that leaves out what is removed."""
    channels = context.result.channels
    stored = channels.stored or channels
    note = "" if channels.stored is None else ", with K = V stored once"
    return f"{wording.counted(stored.kept, stored.total)} numbers per token{note}"


def layer_row(context: Context, layer: LayerInfo, figure: str | None) -> dict[str, Any]:
    """A line of the per-layer table: counts are units, `channels` are (kept, all) of K and of V."""
    every = [context.cells(layer, kind) for kind in KINDS]
    basis = context.result.basis
    ranks = {
        entry["kind"]: sum(entry["rank"]) / len(entry["rank"])
        for entry in (basis.effective_rank if basis else None) or []
        if entry["name"] == layer.name
    }
    return {
        **dict(layer),
        "figure": figure,
        "channels": [(int(one.kept.sum()), one.kept.size) for one in every],
        "rank": float(np.concatenate([one.rank.ravel() for one in every]).mean()),
        "effective": [ranks.get("k"), ranks.get("v")],
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
