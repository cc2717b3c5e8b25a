"""Truth by knock-outs: what is planted must matter, and what is not must not."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import MaskedModel, Units
from mechint.masking.ablation import Ablation
from mechint.validation.planted import Certificate, Planted, kl_meter

# Every planted unit is worth at least this much KL, in nats: a mask below it misses none.
SMALLEST_EFFECT = 2e-3

# Rows for units that should matter, which rare tokens may need, and for the many that should not.
ROWS, ROWS_INERT = 32, 4


def knock_out(
    masked: MaskedModel, units: Units, truth: Tensor, batch: Batch, ablation: Ablation, answers: slice
) -> Certificate:
    """Remove every unit alone, from the dense model and from the planted units, and all that is not planted.

    truth: bool [U]. answers: the positions at which the sequences determine the next token.
    """
    with torch.inference_mode():
        assert batch.answers is not None
        right = masked.logits(batch)[:, answers].argmax(-1) == batch.answers[:, answers]
    kl, quick_kl = (kl_meter(masked, units, batch[:rows], ablation) for rows in (ROWS, ROWS_INERT))
    everything, effect, necessity = torch.ones_like(truth), torch.zeros(len(truth)), torch.zeros(len(truth))
    truth_kl = kl(truth)
    for unit in range(len(truth)):
        effect[unit] = (kl if truth[unit] else quick_kl)(_without(everything, unit))
        if truth[unit]:
            necessity[unit] = kl(_without(truth, unit)) - truth_kl
    return Certificate(
        accuracy=right.float().mean().item(),
        empty_kl=kl(~everything),
        truth_kl=truth_kl,
        effect=effect,
        necessity=necessity,
    )


def _without(keep: Tensor, unit: int) -> Tensor:
    fewer = keep.clone()
    fewer[unit] = False
    return fewer


def check(planted: Planted, joint: Tensor, inert: float) -> None:
    """Hold the certificate against the claim that exactly the planted units matter.

    joint: bool [U], units that are inert when all of them are removed, though not alone. inert: largest KL, in nats, of
    what does not matter. Raises UserError with the first contradiction.
    """
    truth, certificate = planted.truth, planted.certificate
    if certificate.accuracy < 1:
        right = f"{certificate.accuracy:.1%} of the determined positions"
        _refuse(planted, f"the dense model is right at only {right}")
    if certificate.truth_kl > inert:
        _refuse(planted, f"the planted units alone are at KL {certificate.truth_kl:.2g} of the dense model")
    values = torch.minimum(certificate.effect, certificate.necessity)
    weakest = int(torch.where(truth, values, torch.inf).argmin())
    if values[weakest] < SMALLEST_EFFECT:
        _refuse(planted, f"{planted.labels[weakest]} is inert, without it KL rises by {values[weakest]:.2g}")
    others = ~(truth | joint)
    loudest = int(torch.where(others, certificate.effect, -torch.inf).argmax())
    if others[loudest] and certificate.effect[loudest] > inert:
        worth = certificate.effect[loudest]
        _refuse(planted, f"{planted.labels[loudest]} is not planted, but without it KL is {worth:.2g}")
    together = planted.kl(~joint | truth)
    if together > inert:
        _refuse(planted, f"what should cancel does not, without it KL is {together:.2g}")


def _refuse(planted: Planted, why: str) -> None:
    where = f"planted.{planted.name} with seed {planted.seed}"
    raise UserError(f"{where} could not be certified: {why}; change its sizes")
