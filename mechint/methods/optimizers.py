"""The optimizer of the default mask method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class NormalizedSGD(torch.optim.Optimizer):
    """Momentum SGD on the gradient divided by one number, its root mean square over all scores.

    Adam divides every coordinate by its own size, so scores of units without effect drift as fast as those of vital
    ones; one common divisor makes the learning rate independent of the loss's scale and keeps the units' order.

    weight_decay: every step shrinks the parameters by lr * weight_decay of themselves, so that gradients are forgotten
    after about 1 / (lr * weight_decay) steps (decoupled, as in AdamW).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        if not (0 <= lr < math.inf and 0 <= momentum < 1 and 0 <= weight_decay < math.inf):
            raise ValueError(f"invalid lr={lr}, momentum={momentum} or weight_decay={weight_decay}")
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": False}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter group; groups are normalised separately."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters if p.grad is not None]
            total = sum(g.square().sum() for g in gradients)
            count = sum(g.numel() for g in gradients)
            rms = torch.as_tensor(total / max(count, 1)).sqrt().clamp_min(1e-30)
            sign = 1 if group["maximize"] else -1
            for parameter, gradient in zip(parameters, gradients, strict=True):
                buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                buffer.mul_(group["momentum"]).add_(gradient / rms, alpha=1 - group["momentum"])
                parameter.add_(buffer, alpha=sign * group["lr"])
