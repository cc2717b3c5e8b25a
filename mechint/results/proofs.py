"""What a run shows for its basis, one fact after the other, for reports."""

from __future__ import annotations

from dataclasses import dataclass

from mechint.results.result import Result


@dataclass(frozen=True)
class ProofFact:
    """One thing that a basis has to show.

    name: null, random_masks, transfer, subspaces or carried. says: what the numbers are, a template with {value},
    {error}, {beside} and {count}. value: the number; error: its standard error, or its standard deviation over
    permutations; beside: what it is held against; count: of how many. holds: whether it speaks for the basis; None
    where it says nothing.
    """

    name: str
    says: str
    value: float | None
    error: float | None = None
    beside: float | None = None
    count: int | None = None
    holds: bool | None = None


def proof_facts(result: Result) -> list[ProofFact]:
    """What a run shows for its basis; nothing for channels. `result.proofs.missing` says what it does not show."""
    proofs, found = result.proofs, []
    if proofs is None:
        return []
    null = proofs.null or (None if result.stability is None else result.stability.null)
    if null is not None:
        kl = result.metrics
        own = None if not kl.empty.kl or kl.masked.kl is None else 1 - kl.masked.kl / kl.empty.kl
        holds = (
            None
            if not null.informative or own is None
            else _above(own, null.kl_recovered, null.kl_recovered_sd)
        )
        found.append(
            ProofFact(
                "null",
                "the same learning on {count} models with permuted weights recovers {value} (SD {error}) of their KL, "
                "on this model {beside}",
                null.kl_recovered,
                null.kl_recovered_sd,
                own,
                max(1, len(null.permutations)),
                holds,
            )
        )
    random = result.random_masks
    if random is not None:
        found.append(
            ProofFact(
                "random_masks",
                "in the same basis {count} random masks with the same counts have KL {beside} on average, this one "
                "{value} (standard error {error})",
                random.kl_of_mask,
                random.kl_of_mask_se,
                random.kl_mean,
                random.count,
                None if random.p is None else random.p <= 0.05,
            )
        )
    if proofs.transfer is not None:
        transfer, own = proofs.transfer, result.metrics.masked.kl
        elsewhere = transfer.random_masks
        found.append(
            ProofFact(
                "transfer",
                "on a second text, {count} tokens, it has KL {value} (standard error {error}), here {beside}",
                transfer.metrics.masked.kl,
                transfer.metrics.masked.kl_se,
                own,
                transfer.tokens,
                None if elsewhere is None or elsewhere.p is None else elsewhere.p <= 0.05,
            )
        )
    if proofs.subspaces is not None:
        angles = proofs.subspaces
        found.append(
            ProofFact(
                "subspaces",
                "over {count} pairs of seeds, kept subspaces have a mean squared cosine of {value}, matched random "
                "masks in the same bases {beside}",
                angles.cosine2,
                None,
                angles.chance,
                angles.pairs,
                None if angles.cosine2 is None or angles.chance is None else angles.cosine2 > angles.chance,
            )
        )
    if proofs.carried is not None:
        carried = proofs.carried
        found.append(
            ProofFact(
                "carried",
                "of {count} kept directions, the one that lies least in the span of the weights has {value} of its "
                "norm there; {beside} have less than all of it",
                carried.lowest,
                None,
                carried.outside,
                carried.directions,
                None if carried.lowest is None else carried.outside == 0,
            )
        )
    return found


def _above(value: float, other: float | None, spread: float | None) -> bool | None:
    """Whether a value is above others by more than two of their standard deviations."""
    return None if other is None or spread is None else value > other + 2 * spread
