"""Which variants a figure shows: at which sparsity, on which data; said once where all agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechint.comparison.comparison import Comparison, Variant
from mechint.metrics.spread import Spread
from mechint.reporting.report import shape_in_words
from mechint.reporting.wording import percent, plural


@dataclass(frozen=True)
class Facts:
    """common: facts that all variants share. own: each variant's further facts, by name."""

    common: tuple[str, ...]
    own: Mapping[str, tuple[str, ...]]


def facts_of(comparison: Comparison) -> Facts:
    """Sort what is known of the variants into what they share and what tells them apart."""
    own: dict[str, list[str]] = {variant.name: [] for variant in comparison.variants}
    common: list[str] = []
    for describe in DESCRIPTIONS:
        said = {variant.name: describe(variant) for variant in comparison.variants}
        if len(set(said.values())) == 1:
            fact = said[comparison.baseline] + (" each" if describe is runs_fact else "")
            common += [fact] * (describe is not digest_fact)
        else:
            for name, words in said.items():
                own[name].append(words)
    return Facts(
        tuple(filter(None, common)), {name: tuple(filter(None, words)) for name, words in own.items()}
    )


def sparsity_fact(variant: Variant) -> str:
    """'sparsity 90.0 %', of channels; with the range where the runs differ."""
    return f"sparsity {spread_percent(variant.sparsity)}"


def runs_fact(variant: Variant) -> str:
    """How many runs stand behind the numbers."""
    seeds = [seed for seed in variant.seeds if seed is not None]
    if len(variant.runs) > 1 and len(set(seeds)) == len(variant.runs):
        return f"{len(seeds)} seeds"
    return plural(len(variant.runs), "run")


def shape_fact(variant: Variant) -> str:
    """The attention's shape."""
    return shape_in_words(list(variant.runs[0].masks.values()))


def method_fact(variant: Variant) -> str:
    """How the masks were learned."""
    mask = part(variant, "mask")
    method, ablation = mask.get("method"), mask.get("ablation")
    if not method:
        return ""
    return f"{method}" + (f", {ablation} ablation" if ablation else "")


def data_fact(variant: Variant) -> str:
    """What the numbers were measured on."""
    name = part(variant, "dataset").get("name")
    return f"measured on {name}" if name and variant.metrics else "nothing measured"


def tokens_fact(variant: Variant) -> str:
    """How much the numbers were measured on."""
    tokens = part(variant, "dataset").get("evaluation_tokens")
    return f"{tokens:,} evaluation tokens" if tokens and variant.metrics else ""


def digest_fact(variant: Variant) -> str:
    """Which tokens exactly, for data that share a name."""
    digests = {run.result.dataset.evaluation_digest or "" for run in variant.runs}
    shown = sorted(digest[:8] for digest in digests if digest)
    return f"tokens {', '.join(shown)}" if shown else ""


def part(variant: Variant, key: str) -> dict[str, Any]:
    """A section of the first run's result.json; empty where it is absent."""
    return variant.runs[0].result.as_json().get(key) or {}


DESCRIPTIONS: Sequence[Callable[[Variant], str]] = (
    sparsity_fact,
    runs_fact,
    shape_fact,
    method_fact,
    data_fact,
    tokens_fact,
    digest_fact,
)


def spread_percent(spread: Spread, digits: int = 1) -> str:
    """'90.0 %', or '90.0 % (89.1 to 90.4)' where the runs differ."""
    low, high = (f"{100 * value:.{digits}f}" for value in (spread.low, spread.high))
    return percent(spread.mean, digits) + (f" ({low} to {high})" if low != high else "")


def several_runs(comparison: Comparison) -> bool:
    """Whether any variant has more than one run, so that there is a spread to show."""
    return any(len(variant.runs) > 1 for variant in comparison.variants)
