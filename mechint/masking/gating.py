"""Keys and values under a gate, with the smallest backward pass that a frozen model needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mechint.masking.basis import Maps


def gated(states: Tensor, gate: Tensor, fill: Tensor | None, maps: Maps | None = None) -> Tensor:
    """states * gate + fill * (1 - gate), [B, G, T, C], in the dtype of the states.

    states [B, G, T, C]; gate [G, C] or one for each sequence [B, G, C], in float32 whatever the model computes in;
    fill [G, C] or, where it depends on the sequence, [B, G, T, C]; None for zero. maps: the coordinates that gate and
    fill [G, C] are in, where they are not the channels; a fill [B, G, T, C] is in channels as the states are.
    """
    return _Gated.apply(states, gate, fill) if maps is None else _projected(states, gate, fill, maps)


def _projected(states: Tensor, gate: Tensor, fill: Tensor | None, maps: Maps) -> Tensor:
    """The same in other coordinates: what is removed is taken from the states, so open gates change nothing at all.

    Where all gates of a head are closed, nothing at all is left: a norm after attention would blow up what rounding
    leaves.
    """
    removed = (1 - gate).unsqueeze(-2)  # [..., G, 1, C]
    through = (maps.read * removed) @ maps.write  # [..., G, C, C]
    identity = torch.eye(states.shape[-1], device=states.device, dtype=through.dtype)
    closed = (gate == 0).all(-1)[..., None, None]
    through = through + (closed * (identity - through)).detach()
    kept = states @ (identity - through).to(states.dtype)
    if fill is None:
        return kept
    if fill.ndim == 4:
        return kept + fill.to(states.dtype) @ through.to(states.dtype)
    return kept + (fill.unsqueeze(-2) * removed @ maps.write).to(states.dtype)


class _Gated(torch.autograd.Function):
    """Keeps the states and nothing else, and sums the gate's gradient in one pass over them.

    Nothing flows into states that need no gradient: below the first layer's attention no graph is built.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, gate, fill)
        factor = gate.to(states.dtype).unsqueeze(-2)  # [G, 1, C] or [B, G, 1, C]
        if fill is None:
            return states * factor
        return states * factor + _wide(fill).to(states.dtype) * (1 - factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        states, gate, fill = ctx.saved_tensors
        below = gradient * gate.to(gradient.dtype).unsqueeze(-2) if ctx.needs_input_grad[0] else None
        of_fill = None
        if ctx.needs_input_grad[2]:  # constants [G, C] that are learned
            through = gradient.sum(-2, dtype=fill.dtype) * (1 - gate)  # [B, G, C]
            of_fill = through.sum(0)
        if not ctx.needs_input_grad[1]:
            return below, None, of_fill
        summed = (
            (-2,) if gate.ndim == 3 else (0, -2)
        )  # over positions, and sequences where they share the gate
        if fill is not None and fill.ndim == 4:
            return below, (gradient * (states - fill)).sum(summed, dtype=gate.dtype), of_fill
        of_gate = (gradient * states).sum(summed, dtype=gate.dtype)
        if fill is not None:
            of_gate -= fill * gradient.sum(summed, dtype=gate.dtype)
        return below, of_gate, of_fill


def _wide(fill: Tensor) -> Tensor:
    """A fill that broadcasts against states [B, G, T, C]."""
    return fill if fill.ndim == 4 else fill.unsqueeze(-2)
