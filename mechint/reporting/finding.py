"""What a run found, in plain words."""

from __future__ import annotations

import math
from typing import Any

from mechint.reporting.wording import counted, layers_named, number, percent, plural
from mechint.results.run_files import RunFiles


def finding(run: RunFiles) -> str:
    """Two sentences: what is kept and how well the model does with it; where the kept channels are.

    They hold numbers and our own words only, nothing that comes from a checkpoint.
    """
    return f"{kept_sentence(run)} {place_sentence(run)}"


def headline_lines(run: RunFiles) -> list[str]:
    """Two short lines for the head of a figure: sparsity, and loss."""
    sparsity, channels = run.result.sparsity, run.result.channels
    target = sparsity.target
    first = (
        f"{channels.kept:,} of {channels.total:,} channels kept  ·  sparsity {percent(sparsity.achieved, 2)} "
        + ("(target not recorded)" if target is None else f"(target {percent(target, 2)})")
    )
    if not run.measured:
        return [first, "nothing was measured with these masks"]
    dense, masked, empty = (number(run.result.metrics[name].loss, 3) for name in ("dense", "masked", "empty"))
    return [
        first,
        f"loss {dense} dense  →  {masked} masked ({empty} with no channels) nats per token  ·  "
        f"faithfulness {number(run.result.faithfulness, 3)}",
    ]


def kept_sentence(run: RunFiles) -> str:
    """How much is kept and what that does to the loss."""
    channels, sparsity = run.result.channels, run.result.sparsity
    units = "" if channels.total == sparsity.total else f" (as {plural(sparsity.kept, 'unit')})"
    if not run.measured:
        return (
            f"The masks keep {channels.kept:,} of {channels.total:,} attention K/V channels{units}, "
            f"{percent(channels.kept / channels.total)}; what the model does with them was not measured."
        )
    dense, empty, masked = (number(run.loss(name), 3) for name in ("dense", "empty", "masked"))
    return (
        f"Keeping {channels.kept:,} of {channels.total:,} attention K/V channels{units}, "
        f"{percent(channels.kept / channels.total)}, leaves the model at {masked} nats per token, "
        f"against {dense} dense and {empty} with no channels: {verdict(run)}."
    )


def verdict(run: RunFiles) -> str:
    """One clause that says whether the mask is any good."""
    dense, empty, masked = (run.loss(name) for name in ("dense", "empty", "masked"))
    faithfulness = run.result.faithfulness
    if dense is None or masked is None or not math.isfinite(masked):
        return "the loss is not a finite number, so nothing can be concluded"
    if masked < dense:
        return f"the mask improves on the dense model, its loss is {percent((dense - masked) / dense)} lower"
    if empty is None or faithfulness is None or empty <= dense:
        return "the channels do not help the model on this data, so it cannot tell a good mask from a bad one"
    share = f"faithfulness {number(faithfulness, 2)}"
    if masked >= empty:
        return f"that is no better than with every channel removed, so the mask explains nothing ({share})"
    if faithfulness < 0.5:
        return (
            f"most of what the channels contribute is lost, so the mask does not describe the model ({share})"
        )
    if faithfulness < 0.8:
        return f"the mask keeps only part of what the channels contribute ({share})"
    if faithfulness < 0.95:
        return f"the mask keeps most of what the channels contribute ({share})"
    return f"the mask keeps nearly all of what the channels contribute ({share})"


def place_sentence(run: RunFiles) -> str:
    """How K and V share the kept channels, and in which layers they are."""
    k, v = run.result.channels.k, run.result.channels.v
    kinds = f"K keeps {counted(k.kept, k.total)} and V {counted(v.kept, v.total)}"
    return f"{kinds}; {concentration(run)}."


def concentration(run: RunFiles) -> str:
    """Whether at most a third of the layers hold at least half of the kept channels."""
    kept = {layer.index: run.kept(layer.name) for layer in run.layers}
    total = sum(kept.values())
    if total == 0:
        return "no channel is kept"
    ranked = sorted(kept, key=lambda index: (-kept[index], index))
    chosen: list[int] = []
    while sum(kept[index] for index in chosen) < total / 2:
        chosen.append(ranked[len(chosen)])
    share = percent(sum(kept[index] for index in chosen) / total, 0)
    if len(kept) > 1 and len(chosen) <= max(1, len(kept) // 3):
        verb = "holds" if len(chosen) == 1 else "hold"
        return f"the kept channels concentrate in {layers_named(chosen)}, which {verb} {share} of them"
    most, least = ranked[0], ranked[-1]
    if len(kept) == 1:
        return "the model has a single layer"
    return f"they are spread out, from {kept[least]:,} in layer {least} to {kept[most]:,} in layer {most}"


def cautions(run: RunFiles) -> list[str]:
    """Facts about this mask that a reader should weigh, each a sentence in our own words."""
    return [
        sentence
        for sentence in (exactness(run), complement(run), silent_layers(run), idle_keys(run))
        if sentence
    ]


def exactness(run: RunFiles) -> str | None:
    """Whether the target is missed by a unit or more."""
    sparsity = run.result.sparsity
    if sparsity.target is None:
        return None
    asked = (1 - sparsity.target) * sparsity.total
    if abs(sparsity.kept - asked) < 1:
        return None
    return f"The target asks for {asked:,.0f} kept units; this mask keeps {sparsity.kept:,}."


def complement(run: RunFiles) -> str | None:
    """Whether the removed channels alone do as well as the kept ones."""
    masked, rest = run.loss("masked"), run.loss("complement")
    if masked is None or rest is None or rest > masked:
        return None
    return (
        f"The complement, the channels that were removed, reaches a loss of {number(rest, 3)} by itself, "
        f"which is no worse than the {number(masked, 3)} of the mask: the kept channels are not necessary."
    )


def silent_layers(run: RunFiles) -> str | None:
    """Layers that keep no V channel."""
    silent = [layer.index for layer in run.layers if not run.masks[layer.name].v_mask.any()]
    if not silent or blind_to_fill(run):
        return None
    where = "all layers" if len(silent) == len(run.layers) else layers_named(silent)
    return f"No V channel is kept in {where}: attention there passes nothing of its input on."


def idle_keys(run: RunFiles) -> str | None:
    """K channels that are kept in heads whose every V channel is removed."""
    if blind_to_fill(run):
        return None
    idle = sum(int(mask.k_mask[~mask.v_mask.any(dim=1)].sum()) for mask in run.masks.values())
    if not idle:
        return None
    verb = "belongs" if idle == 1 else "belong"
    return (
        f"{plural(idle, 'kept K channel')} {verb} to KV heads without any V channel and can have no effect."
    )


def blind_to_fill(run: RunFiles) -> bool:
    """Whether removed values still carry the input: a counterfactual value does, zero and mean do not."""
    return run.result.mask.ablation not in ("zero", "mean")


def thirds(run: RunFiles) -> list[dict[str, Any]]:
    """Early, middle and late layers, as sums over the per-layer entries; none for fewer than three layers."""
    layers = run.layers
    rows = []
    for number_, name in enumerate(("early", "middle", "late")):
        part = [layer for place, layer in enumerate(layers) if place * 3 // len(layers) == number_]
        if len(layers) >= 3:
            sums = {
                key: sum(getattr(layer, key) for layer in part)
                for key in ("k_kept", "k_total", "v_kept", "v_total")
            }
            sparsity = 1 - (sums["k_kept"] + sums["v_kept"]) / (sums["k_total"] + sums["v_total"])
            rows.append(
                {"name": name, "indices": [layer.index for layer in part], "sparsity": sparsity, **sums}
            )
    return rows
