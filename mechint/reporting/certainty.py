"""How sure a run of several seeds is, in plain words: numbers and our own words only."""

from __future__ import annotations

from collections.abc import Sequence

from mechint.reporting.wording import enumeration, number, percent, plural
from mechint.results.result import InertnessInfo, NecessityInfo, NullControl, Result, StabilityInfo


def headline_of_seeds(stability: StabilityInfo) -> list[str]:
    """Two short lines for the head of a figure."""
    iou, single, consensus = stability.iou, stability.single, stability.consensus
    return [
        f"{plural(len(stability.seeds), 'seed')}: two masks share {number(iou.mean, 2)} of what either keeps "
        f"(mean IoU; lowest {number(iou.min, 2)}; chance {number(iou.chance, 2)})",
        f"KL {number(consensus.kl, 3)} consensus, {number(single.kl_mean, 3)} on average for a seed's own mask "
        f"({number(min(single.kl), 3)} to {number(max(single.kl), 3)})  ·  "
        f"{consensus.unanimous_units:,} of {plural(consensus.units, 'unit')} kept by every seed",
    ]


def agreement_lines(result: Result) -> list[str]:
    """What a run of several seeds says of them, for the end of its terminal output; nothing for one seed."""
    return headline_of_seeds(result.stability) if result.stability else []


def certainty(stability: StabilityInfo) -> list[str]:
    """What follows from the tests, a sentence or two for each."""
    sentences = [agreement(stability), consensus_sentence(stability)]
    if stability.necessity:
        sentences.append(necessity(stability.necessity))
    if stability.inertness:
        sentences.append(inertness(stability.inertness))
    if stability.null:
        sentences.append(null_control(stability.null, stability.single.kl_recovered))
    return sentences


def agreement(stability: StabilityInfo) -> str:
    """How alike the masks are."""
    iou, histogram = stability.iou, stability.frequency_histogram
    seeds = len(stability.seeds)
    if iou.mean is None:
        return "No seed keeps any channel, so there is nothing to agree on."
    return (
        f"Two seeds' masks share {percent(iou.mean, 0)} of the channels that either keeps (mean IoU "
        f"{number(iou.mean, 3)}, lowest {number(iou.min, 3)}). Matched random masks, "
        f"with the same counts in every layer, kind and KV head, would share {percent(iou.chance, 0)}. "
        f"{histogram[-1]:,} channels are kept by all {seeds} seeds, "
        f"{sum(histogram[1:-1]):,} by some, {histogram[0]:,} by none; chance alone would make that "
        f"{number(stability.frequency_histogram_chance[-1], 1)}, "
        f"{number(sum(stability.frequency_histogram_chance[1:-1]), 1)} and "
        f"{number(stability.frequency_histogram_chance[0], 1)}."
    )


def consensus_sentence(stability: StabilityInfo) -> str:
    """Whether the consensus does better than what it is made of."""
    consensus, single = stability.consensus, stability.single
    best, worst, here = min(single.kl), max(single.kl), consensus.kl
    if here < best:
        verdict = "better than every one of them"
    elif here > worst:
        verdict = (
            "worse than every one of them: what a unit is worth depends on which others are kept, and a vote can split "
            "sets that only work together. The consensus says which units are certain; the best mask is a seed's own"
        )
    else:
        verdict = "within their range"
    return (
        f"The consensus mask, the units most often selected, has KL {number(here, 4)}; the seeds' own masks have "
        f"{number(single.kl_mean, 4)} on average ({number(best, 4)} to {number(worst, 4)}), so it is {verdict}."
    )


def necessity(found: NecessityInfo) -> str:
    """How many kept units are needed."""
    tested = (
        f"Of {found.tested:,} kept units"
        if found.tested == found.kept
        else f"Of {found.tested:,} kept units, a random sample of all {found.kept:,},"
    )
    idle = found.unclear + found.harmful
    return (
        f"{tested} removed one at a time from the consensus mask, the KL rises for {found.needed:,}, changes by "
        f"less than twice its standard error for {found.unclear:,}, and falls for {found.harmful:,}"
        + (f": {plural(idle, 'unit')} may not be needed where the others are kept" if idle else "")
        + f". The median rise is {number(found.rise.median, 4)} nats per token, the largest "
        f"{number(found.rise.max, 4)} (over {found.tokens:,} evaluation tokens). Two units that do the same "
        "work look unneeded one by one."
    )


def inertness(found: InertnessInfo) -> str:
    """Whether the removed units do nothing."""
    largest = found.sizes[-1]
    added, removed = largest.added, largest.removed
    verdict = {
        "none": "Random subsets of the removed units change nothing: every mean is within noise, or below 1 % of what "
        "as many kept units are worth",
        "lowers": "The removed units are NOT inert: adding them back lowers the KL",
        "raises": "The removed units are NOT inert: adding them back raises the KL, they disturb what is kept",
        "mixed": "The removed units are NOT inert: adding them back raises or lowers the KL, depending on how many",
    }[found.verdict]
    return (
        f"{verdict}. Random {largest.units:,} of the {found.dropped:,} change it by {signed(added.mean)} on "
        f"average ({signed(added.min)} to {signed(added.max)} over {found.draws} draws; the mask's own KL on "
        f"these {found.tokens:,} tokens is {number(found.masked_kl, 4)}); removing as many of the "
        f"{found.kept:,} kept ones changes it by {signed(removed.mean)}. All removed units together are worth "
        "the mask's whole KL, since with them the model is the dense one."
    )


def null_control(null: NullControl, recovered: Sequence[float | None]) -> str:
    """What the method finds where there is nothing to find, beside what each seed recovers of the real model's KL."""
    own = [value for value in recovered if value is not None]
    mean = sum(own) / len(own) if own else None
    here = null.kl_recovered
    text = (
        "Null control: with the entries of every attention and MLP matrix permuted, the same method (seed "
        f"{null.seed}) removes {percent(here)} of the empty model's KL (from {number(null.kl_empty, 4)} to "
        f"{number(null.kl, 4)}); on the real model a seed removes {percent(mean)}."
    )
    if here is None or mean is None:
        return text
    if here >= mean:
        return (
            f"{text} That is no less: a model whose weights are in random places is reproduced as well by so few "
            "channels, so the share alone is no evidence that the mask found learned structure."
        )
    return f"{text} The difference is what needs the learned weights in their places."


def signed(value: float | None) -> str:
    """A change with its sign."""
    words = number(value, 4)
    return f"+{words}" if value is not None and value > 0 else words


def seeds_in_words(stability: StabilityInfo) -> str:
    """'0–4'."""
    return enumeration(stability.seeds)
