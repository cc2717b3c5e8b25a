"""How sure a run is, in plain words: numbers and our own words only."""

from __future__ import annotations

from collections.abc import Sequence

from mechint.reporting.wording import enumeration, measured, measured_percent, number, percent, plural
from mechint.results.result import (
    InertnessInfo,
    NecessityInfo,
    NullControl,
    Proofs,
    Result,
    StabilityInfo,
    SubspaceAgreement,
    Transfer,
)


def headline_of_seeds(stability: StabilityInfo) -> list[str]:
    """Two short lines for the head of a figure."""
    iou, single, consensus = stability.iou, stability.single, stability.consensus
    return [
        f"{plural(len(stability.seeds), 'seed')}: two masks share {number(iou.mean, 2)} of what either keeps "
        f"(mean IoU; lowest {number(iou.min, 2)}; matched chance {number(iou.chance, 2)})",
        f"KL {measured(consensus.kl, consensus.kl_se)} consensus, {number(single.kl_mean, 3)} on average for a "
        f"seed's "
        f"own mask ({number(min(single.kl), 3)} to {number(max(single.kl), 3)})  ·  "
        f"{consensus.unanimous_units:,} of {plural(consensus.units, 'unit')} kept by every seed",
    ]


def agreement_lines(result: Result) -> list[str]:
    """What a run of several seeds says of them, for the end of its terminal output; nothing for one seed."""
    return headline_of_seeds(result.stability) if result.stability else []


def certainty(stability: StabilityInfo, noun: str = "channel") -> list[str]:
    """What follows from the tests, a sentence or two for each."""
    sentences = [agreement(stability, noun), consensus_sentence(stability)]
    if stability.necessity:
        sentences.append(necessity(stability.necessity))
    if stability.inertness:
        sentences.append(inertness(stability.inertness))
    if stability.null:
        sentences.append(null_control(stability.null, stability.single.kl_recovered))
    return sentences


def agreement(stability: StabilityInfo, noun: str) -> str:
    """How alike the masks are."""
    iou, histogram, by_chance = (
        stability.iou,
        stability.frequency_histogram,
        stability.frequency_histogram_chance,
    )
    if iou.mean is None:
        return f"No seed keeps any {noun}, so there is nothing to agree on."
    return (
        f"Two seeds' masks share {percent(iou.mean, 0)} of the {noun}s that either keeps (mean IoU "
        f"{number(iou.mean, 3)}, lowest {number(iou.min, 3)}). Matched random masks, "
        f"with the same counts in every layer, kind and KV head, would share {percent(iou.chance, 0)}. "
        f"{histogram[-1]:,} {noun}s are kept by all {len(stability.seeds)} seeds, "
        f"{sum(histogram[1:-1]):,} by some, {histogram[0]:,} by none; matched chance would make that "
        f"{number(by_chance[-1], 1)}, {number(sum(by_chance[1:-1]), 1)} and {number(by_chance[0], 1)}."
    )


def consensus_sentence(stability: StabilityInfo) -> str:
    """Whether the consensus does better than what it is made of."""
    consensus, single = stability.consensus, stability.single
    best, worst, here = min(single.kl), max(single.kl), consensus.kl
    if here < best:
        verdict = "better than every one of them"
    elif here > worst:
        verdict = (
            "worse than every one of them: what a unit is worth depends on which others are kept, and a vote can "
            "split "
            "sets that only work together. The consensus says which units are certain; the best mask is a seed's own"
        )
    else:
        verdict = "within their range"
    return (
        f"The consensus mask, the units most often selected, has KL {measured(here, consensus.kl_se)}; the seeds' "
        f"own "
        f"masks have {number(single.kl_mean, 3)} on average ({number(best, 3)} to {number(worst, 3)}), so it is "
        f"{verdict}."
    )


def necessity(found: NecessityInfo) -> str:
    """How many kept units are needed."""
    tested = (
        f"Of {found.tested:,} kept units"
        if found.tested == found.kept
        else f"Of {found.tested:,} kept units, a random sample of all {found.kept:,},"
    )
    idle = found.unclear + found.harmful
    if found.rate is None:
        test = "by more than twice its standard error"
    else:
        rate = percent(found.rate, 0)
        test = f"by a t test over {found.sequences or 0:,} sequences at a false discovery rate of {rate}"
    return (
        f"{tested} removed one at a time from the consensus mask, the KL rises for {found.needed:,} and falls for "
        f"{found.harmful:,} ({test}); for {found.unclear:,} neither is shown"
        + (f": {plural(idle, 'unit')} may not be needed where the others are kept" if idle else "")
        + f". The median rise is {number(found.rise.median, 4)} nats per token, the largest "
        f"{number(found.rise.max, 4)} (over {found.tokens:,} evaluation tokens). Two units that do the same "
        "work each look unneeded on their own."
    )


def inertness(found: InertnessInfo) -> str:
    """Whether the removed units do nothing, which takes a test of its own: that no change is seen does not show "
    "it."""
    largest = found.sizes[-1]
    added, removed, masked = largest.added, largest.removed, measured(found.masked_kl, found.masked_kl_se, 4)
    share = percent(found.share or 0.01, 0)
    verdict = {
        "equivalent": f"The removed units are inert beside the kept ones: adding back random subsets of any size "
        f"changes the KL by less than {share} of what as many kept units are worth",
        "unclear": "Whether the removed units are inert is not shown: the mean change when random subsets are added "
        "back can neither be told from zero nor is it shown to be small",
        "lowers": "The removed units are not inert: adding them back lowers the KL",
        "raises": "The removed units are not inert: adding them back raises the KL, they disturb what is kept",
        "mixed": "The removed units are not inert: adding them back raises or lowers the KL, depending on how many",
    }[found.verdict]
    test = ""
    if largest.interval and largest.bound is not None:
        low, high = (signed(end) for end in largest.interval)
        test = f", 90 % interval {low} to {high}, no change: within {number(largest.bound, 4)}"
    return (
        f"{verdict}. Random {largest.units:,} of the {found.dropped:,} change it by "
        f"{signed(added.mean, added.mean_se)} on average ({signed(added.min)} to {signed(added.max)} over "
        f"{found.draws} draws{test}; "
        f"the mask's own KL on these {found.tokens:,} tokens is {masked}); removing as many of the {found.kept:,} "
        f"kept ones changes it by "
        f"{signed(removed.mean, removed.mean_se)}. All removed units together are worth the mask's whole KL, since "
        "with them the model is the dense one."
    )


def null_control(null: NullControl, recovered: Sequence[float | None]) -> str:
    """What the method finds where there is nothing to find, beside what each run recovers of the real model's KL."""
    own = [value for value in recovered if value is not None]
    mean = sum(own) / len(own) if own else None
    here, count = null.kl_recovered, max(1, len(null.permutations))
    of_seed = f" (seed {null.seed})" if null.seed is not None else ""
    text = (
        "Null control: with the entries of every attention and MLP matrix permuted "
        f"({plural(count, 'permutation')}), the same method{of_seed} removes "
        f"{measured_percent(here, null.kl_recovered_sd)} of the empty model's KL (from {number(null.kl_empty, 4)} to "
        f"{number(null.kl, 4)}); on the real model a run removes {percent(mean)}."
    )
    dense, empty = null.loss.dense, null.loss.empty
    informative = null.informative
    if informative is None and dense is not None and empty is not None:
        informative = dense < empty
    if informative is False:
        return (
            f"{text} It is not informative: the permuted model's dense loss ({number(dense, 3)}) is no better "
            f"than its "
            f"empty one's ({number(empty, 3)}), so there is nothing that a mask could lose."
        )
    if here is not None and mean is not None and here >= mean:
        text += (
            " This is no less: a model whose weights are in random places is reproduced as well by so few units, so "
            "the share alone is no evidence that the mask found learned structure."
        )
    if null.difference is not None and null.interval:
        low, high = (percent(end) for end in null.interval)
        text += f" The difference is {percent(null.difference)} (95 % interval {low} to {high})."
    return text


def proofs_in_words(proofs: Proofs, recovered: float | None) -> list[str]:
    """What a basis has to show before its directions are believed, a sentence for each proof."""
    sentences = []
    if proofs.null:
        sentences.append(null_control(proofs.null, [recovered]))
    if proofs.transfer:
        sentences.append(transfer(proofs.transfer))
    if proofs.subspaces:
        sentences.append(subspaces(proofs.subspaces))
    if (carried := proofs.carried) and carried.directions:
        sentences.append(
            f"Weights: of {carried.directions:,} kept directions {carried.outside:,} leave the span of what the "
            f"weights can make (share of the norm inside: lowest {number(carried.lowest, 4)}, "
            f"mean {number(carried.mean, 4)}); {carried.deficient:,} of {carried.of_heads:,} heads have weights "
            f"that do not fill all dimensions, so "
            "that the share could be below 1 there."
        )
    return sentences + [f"Not measured: {what}" for what in proofs.missing]


def transfer(found: Transfer) -> str:
    """What the mask does on a second text."""
    masked, random = found.metrics.masked, found.random_masks
    text = (
        f"Second text, nothing learned or fitted there: KL {measured(masked.kl, masked.kl_se)}, same top token at "
        f"{measured_percent(masked.top1_agreement, masked.top1_agreement_se)}, faithfulness "
        f"{measured(found.faithfulness, found.faithfulness_se, 2)} over {found.tokens:,} tokens"
    )
    if random is not None and random.kl_mean is not None:
        text += f"; matched random masks have KL {measured(random.kl_mean, random.kl_mean_se)} there"
    return f"{text}."


def subspaces(found: SubspaceAgreement) -> str:
    """Whether seeds keep the same subspaces."""
    return (
        f"Seeds: the subspaces that two seeds keep have a mean squared cosine of {number(found.cosine2, 3)} between "
        f"their principal angles (keys {number(found.k.get('cosine2'), 3)}, values "
        f"{number(found.v.get('cosine2'), 3)}); random subspaces of the same dimensions "
        f"{number(found.random, 3)}, matched random masks in the same bases "
        f"{number(found.chance, 3)}."
    )


def signed(value: float | None, error: float | None = None) -> str:
    """A change with its sign."""
    words = measured(value, error, 4)
    return f"+{words}" if value is not None and value > 0 else words


def seeds_in_words(stability: StabilityInfo) -> str:
    """'0–4'."""
    return enumeration(stability.seeds)
