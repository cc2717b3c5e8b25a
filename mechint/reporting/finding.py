"""What a run found, in plain words: numbers and our own words only, nothing that comes from a checkpoint."""

from __future__ import annotations

from typing import Any

from mechint.masking.ablation import known_ablations
from mechint.reporting.context import Context
from mechint.reporting.style import Caution
from mechint.reporting.wording import (
    counted,
    interval,
    layers_named,
    measured,
    measured_percent,
    number,
    percent,
    plural,
)
from mechint.results.result import Grade, ModelName, Result
from mechint.results.verdict import FEW_TOKENS

SUFFICIENT: dict[Grade, str] = {
    "nearly all": "sufficient",
    "most": "largely sufficient",
    "part": "partly sufficient",
    "little": "not sufficient",
}
NECESSARY: dict[Grade, str] = {
    "nearly all": "not necessary",
    "most": "hardly necessary",
    "part": "partly necessary",
    "little": "necessary",
}


def finding(context: Context) -> str:
    """What is kept, whether it suffices, whether it is needed, what chance gives, and where it is."""
    kept = context.result.channels.kept, context.result.channels.total
    units = context.result.sparsity
    as_units = "" if kept[1] == units.total else f", as {plural(units.kept, 'unit')}"
    what = (
        f"{kept[0]:,} of {kept[1]:,} attention K/V {context.noun}s ({percent(kept[0] / kept[1])}{as_units})"
    )
    if not context.run.measured:
        return f"The masks keep {what}; what the model does with them was not measured. {place_sentence(context)}"
    opening = f"The {what} that the mask keeps are **{judgement(context)}**."
    if reasons := context.verdict.not_learned:
        opening += f" **Not the mask that learning arrives at:** {'; '.join(reasons)}."
    sentences = [opening, sufficiency(context), necessity(context), chance(context), place_sentence(context)]
    return " ".join(sentence for sentence in sentences if sentence)


def judgement(context: Context) -> str:
    """'not sufficient and not necessary, and not distinguished from chance'."""
    verdict = context.verdict
    words = "of unknown worth: the loss is not a finite number"
    if verdict.kept is not None:
        words = SUFFICIENT[verdict.kept]
        if verdict.removed is not None:
            also = NECESSARY[verdict.removed]
            denied = [part.startswith(("not", "hardly")) for part in (words, also)]
            words += f" {'and' if denied[0] == denied[1] else 'but'} {also}"
    return words + ", and not distinguished from chance" * (verdict.above_chance is False)


def sufficiency(context: Context) -> str:
    """What the kept units do alone."""
    result, verdict = context.result, context.verdict
    dense, empty, masked = (result.metrics[name] for name in ("dense", "empty", "masked"))
    if verdict.kept is None:
        return ""
    prompts = None if result.task is None else result.task.prompts.get("evaluation")
    where = f" on {plural(prompts, 'evaluation prompt')}" if prompts else ""
    text = (
        f"Alone they give {numbers(context, 'masked')}{where}: {verdict.kept} of what the dense model does, "
    )
    text += f"judged by the worst of four measures ({', '.join(verdict.kept_by)})"
    if masked.loss is not None and dense.loss is not None and masked.loss < dense.loss:
        text += f"; the loss is {percent((dense.loss - masked.loss) / dense.loss)} below the dense model's"
    if None not in (empty.loss, dense.loss) and (empty.loss or 0) <= (dense.loss or 0):
        text += "; without any of them the loss is no higher, so these data cannot tell a good mask from a bad one"
    return f"{text}."


def necessity(context: Context) -> str:
    """What the removed units do alone."""
    channels, verdict = context.result.channels, context.verdict
    if verdict.removed is None:
        return ""
    rest = channels.total - channels.kept
    return (
        f"Without them, the {rest:,} others alone give {numbers(context, 'complement')}: {verdict.removed} of what the "
        "dense model does."
    )


def chance(context: Context) -> str:
    """What matched random masks do."""
    result = context.result
    random = result.random_masks
    if random is None or random.p is None:
        return ""
    faithful, of_mask = chance_faithfulness(result)
    norms = ", and per quarter of these units by the norm of their activations," * (random.match == "norms")
    return (
        f"{random.count:,} random masks with the same counts per {places_of(result.mask.unit)}{norms} have KL "
        f"{measured(random.kl_mean, random.kl_mean_se)} on average ({faithful}); this mask has "
        f"{measured(random.kl_of_mask, random.kl_of_mask_se)} ({of_mask}) on the same "
        f"{random.tokens:,} {'tokens' if result.task is None else 'prompts'}, p = {random.p:.2g}."
    )


def chance_faithfulness(result: Result) -> tuple[str, str]:
    """Faithfulness of random masks and of the run's own on the same data: on a task that of the logit difference."""
    random = result.random_masks
    assert random is not None
    if result.task is not None and random.logit_diff_faithfulness_of_mask is not None:
        mean, own = (
            f"{number(value, 2)}{interval(ends)}"
            for value, ends in (
                (random.logit_diff_faithfulness_mean, random.logit_diff_faithfulness_interval),
                (random.logit_diff_faithfulness_of_mask, random.logit_diff_faithfulness_of_mask_interval),
            )
        )
        return f"faithfulness of the logit difference {mean}", own
    mean = measured(random.faithfulness_mean, random.faithfulness_mean_se, 2)
    own = measured(random.faithfulness_of_mask, random.faithfulness_of_mask_se, 2)
    return f"faithfulness{' of the loss' * (result.task is not None)} {mean}", own


def places_of(unit: str | None) -> str:
    """Where matched random masks keep as much as the run's."""
    return "layer and kind" if unit == "head" else "layer, kind and KV head"


def numbers(context: Context, name: ModelName, short: bool = False) -> str:
    """KL, agreement, loss and faithfulness of the masked model or its complement; `short`: for figures."""
    result = context.result
    model, dense, empty = result.metrics[name], result.metrics.dense, result.metrics.empty
    said = []
    if model.kl is not None:
        said.append(f"KL {measured(model.kl, model.kl_se)}{'' if short else ' nats per token'}")
    if model.top1_agreement is not None:
        share = measured_percent(model.top1_agreement, model.top1_agreement_se)
        said.append(
            f"same top token {share}" if short else f"the dense model's top token at {share} of positions"
        )
    if model.loss is not None:
        ends = f" (dense {number(dense.loss, 3)}, empty {number(empty.loss, 3)})"
        said.append(f"loss {measured(model.loss, model.loss_se)}{ends * (name == 'masked')}")
    if (faithful := faithfulness_of(context, name)) is not None:
        error = result.faithfulness_se if name == "masked" else None
        said.append(f"faithfulness {measured(faithful, error, 2)}")
    return ", ".join(said)


def faithfulness_of(context: Context, name: ModelName) -> float | None:
    """Of the masked model or its complement; None where the losses are not known or do not differ."""
    if name == "masked":
        return context.result.faithfulness
    dense, empty, loss = (context.run.loss(model) for model in ("dense", "empty", name))
    if dense is None or empty is None or loss is None or dense == empty:
        return None
    return (empty - loss) / (empty - dense)


def headline_lines(context: Context) -> list[str]:
    """Short lines for the head of a figure: the finding's numbers, and what must not be overlooked."""
    sparsity, channels, result = context.result.sparsity, context.result.channels, context.result
    target = "target not recorded" if sparsity.target is None else f"target {percent(sparsity.target, 2)}"
    first = (
        f"{channels.kept:,} of {channels.total:,} {context.noun}s kept  ·  sparsity {percent(sparsity.achieved, 2)} "
        f"({target})"
    )
    if not context.run.measured:
        return [first, "nothing was measured with these masks"]
    lines = [f"{first}  ·  {judgement(context)}"]
    models: dict[str, ModelName] = {"kept": "masked", "removed": "complement"}
    lines += [
        f"{label} alone: {said}" for label, name in models.items() if (said := numbers(context, name, True))
    ]
    random = result.random_masks
    if random is not None and random.p is not None:
        lines.append(
            f"{random.count:,} matched random masks: KL {measured(random.kl_mean, random.kl_mean_se)}; this one on the "
            f"same tokens {measured(random.kl_of_mask, random.kl_of_mask_se)} (p = {random.p:.2g})"
        )
    if reasons := context.verdict.not_learned:
        lines.append(Caution(f"⚠ not the mask that learning arrives at: {'; '.join(reasons)}"))
    if few := few_tokens(context):
        lines.append(Caution(f"⚠ {few}"))
    return lines


def place_sentence(context: Context) -> str:
    """How K and V share the kept channels, and in which layers they are."""
    k, v = (counted(*context.count(kind)) for kind in ("K", "V"))
    return f"K keeps {k} and V {v}; {concentration(context)}."


def concentration(context: Context) -> str:
    """Whether at most a third of the layers hold at least half of the kept channels."""
    kept = {layer.index: context.run.kept(layer.name) for layer in context.layers}
    total = sum(kept.values())
    if total == 0:
        return f"no {context.noun} is kept"
    ranked = sorted(kept, key=lambda index: (-kept[index], index))
    chosen: list[int] = []
    while sum(kept[index] for index in chosen) < total / 2:
        chosen.append(ranked[len(chosen)])
    share = percent(sum(kept[index] for index in chosen) / total, 0)
    if len(kept) > 1 and len(chosen) <= max(1, len(kept) // 3):
        verb = "holds" if len(chosen) == 1 else "hold"
        return f"the kept {context.noun}s concentrate in {layers_named(chosen)}, which {verb} {share} of them"
    most, least = ranked[0], ranked[-1]
    if len(kept) == 1:
        return "the model has a single layer"
    return f"they are spread out, from {kept[least]:,} in layer {least} to {kept[most]:,} in layer {most}"


def cautions(context: Context) -> list[str]:
    """Facts about this mask that a reader should weigh, each a sentence."""
    found = (few_tokens(context), exactness(context), silent_layers(context), idle_keys(context))
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in found if sentence]


def few_tokens(context: Context) -> str | None:
    """Whether the evaluation data are small."""
    tokens = context.result.dataset.evaluation_tokens
    if tokens is None or tokens >= FEW_TOKENS or not context.run.measured:
        return None
    return f"measured on {tokens:,} evaluation tokens, which are few (fewer than {FEW_TOKENS:,})"


def exactness(context: Context) -> str | None:
    """Whether the target is missed by a unit or more."""
    sparsity = context.result.sparsity
    if sparsity.target is None:
        return None
    asked = (1 - sparsity.target) * sparsity.total
    if abs(sparsity.kept - asked) < 1:
        return None
    return f"the target asks for {asked:,.0f} kept units; this mask keeps {sparsity.kept:,}"


def silent_layers(context: Context) -> str | None:
    """Layers that keep no V channel."""
    silent = [layer.index for layer in context.layers if not context.cells(layer, "V").kept.any()]
    if not silent or blind_to_fill(context):
        return None
    where = "all layers" if len(silent) == len(context.layers) else layers_named(silent)
    return f"no V {context.noun} is kept in {where}: attention there passes nothing of its input on"


def idle_keys(context: Context) -> str | None:
    """K channels that are kept in heads whose every V channel is removed."""
    if blind_to_fill(context):
        return None
    pairs = [(context.cells(layer, "K").kept, context.cells(layer, "V").kept) for layer in context.layers]
    idle = sum(int(k[~v.any(axis=1)].sum()) for k, v in pairs)
    if not idle:
        return None
    verb = "belongs" if idle == 1 else "belong"
    noun = f"K {context.noun}"
    return f"{plural(idle, f'kept {noun}')} {verb} to KV heads without any V {context.noun} and can have no effect"


def blind_to_fill(context: Context) -> bool:
    """Whether a head without kept values may still pass something on: what stands in for them tells inputs or positions
    apart.
    """
    kind = known_ablations().get(context.result.mask.ablation or "")
    return kind is None or kind.carries_input or kind.keeps_positions


def thirds(context: Context) -> list[dict[str, Any]]:
    """Early, middle and late layers, as sums over the per-layer entries; none for fewer than three layers."""
    layers = context.layers
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
