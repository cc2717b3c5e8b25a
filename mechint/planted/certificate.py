"""Truth by knock-outs: what is planted must matter, and what is not must not."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.planted.planted import Certificate, Planted

# Every planted unit is worth at least this much KL, in nats: a mask with less than that misses none.
SMALLEST_EFFECT = 2e-3

# Rows for units that should matter, which rare tokens may need, and for the many that should not.
ROWS, ROWS_INERT = 32, 8


def knock_out(planted: Planted, answers: slice) -> Certificate:
    """Remove every unit alone, from the dense model and from the planted units, and all that is not planted.

    answers: the positions at which the rows determine the next token.
    """
    masked, truth = planted.masked, planted.truth
    inputs, targets = planted.evaluation_rows[:, :-1], planted.evaluation_rows[:, 1:]
    with torch.no_grad():
        right = masked.logits(inputs)[:, answers].argmax(-1) == targets[:, answers]
    everything, effect, necessity = torch.ones_like(truth), torch.zeros(len(truth)), torch.zeros(len(truth))
    truth_kl = planted.kl(truth, ROWS)
    for unit in range(len(truth)):
        effect[unit] = planted.kl(_without(everything, unit), ROWS if truth[unit] else ROWS_INERT)
        if truth[unit]:
            necessity[unit] = planted.kl(_without(truth, unit), ROWS) - truth_kl
    return Certificate(
        accuracy=right.float().mean().item(),
        empty_kl=planted.kl(~everything),
        truth_kl=truth_kl,
        effect=effect,
        necessity=necessity,
    )


def _without(keep: Tensor, unit: int) -> Tensor:
    fewer = keep.clone()
    fewer[unit] = False
    return fewer


def check(planted: Planted, certificate: Certificate, joint: Tensor, inert: float) -> None:
    """Hold the certificate against the claim that exactly the planted units matter.

    joint: bool [U], units that are inert when all of them are removed, though not alone. inert: largest KL, in nats, of what does not
    matter. Raises UserError with the first contradiction.
    """
    truth, effect = planted.truth, certificate.effect
    if certificate.accuracy < 1:
        _refuse(planted, f"the dense model is right in only {certificate.accuracy:.1%} of the determined positions")
    if certificate.truth_kl > inert:
        _refuse(planted, f"the planted units alone are at KL {certificate.truth_kl:.2g} of the dense model")
    for what, values in (("the dense model", effect), ("the planted units", certificate.necessity)):
        weakest = int(torch.where(truth, values, torch.inf).argmin())
        if values[weakest] < SMALLEST_EFFECT:
            _refuse(planted, f"{planted.labels[weakest]} is inert: removed from {what} it costs {values[weakest]:.2g}")
    loudest = int(torch.where(truth | joint, -torch.inf, effect).argmax())
    if effect[loudest] > inert:
        _refuse(planted, f"{planted.labels[loudest]} is not planted, but removing it costs {effect[loudest]:.2g}")
    together = planted.kl(~joint)
    if together > inert:
        _refuse(planted, f"the cancelling units do not cancel: removing them costs {together:.2g}")


def _refuse(planted: Planted, why: str) -> None:
    raise UserError(
        f"planted.{planted.name} seed {planted.seed} has no certain truth with these settings: {why} nats; change its sizes"
        if "right in" not in why
        else f"planted.{planted.name} seed {planted.seed} does not work with these settings: {why}; change its sizes"
    )
