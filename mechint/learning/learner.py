"""One step of learning a mask, and everything that changes from step to step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.learning.finite import gradients_finite, require_finite_step
from mechint.learning.fit import Fit, backward_in_parts
from mechint.masking.masked_model import MaskedModel
from mechint.methods.method import LearnedMethod, MaskMethod
from mechint.methods.state import give, take
from mechint.metrics.dense_outputs import DenseOutputs
from mechint.metrics.objectives import Objective
from mechint.runtime import distributed

Metrics = dict[str, float | None]
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

# What of a learner a saved state holds.
CHANGING = ("method", "optimizer", "scheduler", "dense", "batches", "generator", "switched_on")


class Learner:
    """A method that is learned on rows of calibration data [N, T + 1], step by step.

    steps: how many there will be in all, which the schedules refer to. batch_size: sequences per step, of all
    processes. fit: how many of them go through the model at once. dense_bytes: capacity for the dense model's outputs.
    learning_rate: at a part of the run in [0, 1], as a fraction of the optimizer's own.
    """

    def __init__(
        self,
        masked: MaskedModel,
        rows: Tensor,
        method: LearnedMethod,
        objective: Objective,
        make_optimizer: MakeOptimizer,
        schedule: Callable[[float], float],
        steps: int,
        batch_size: int,
        generator: torch.Generator,
        fit: Fit,
        dense_bytes: int,
        learning_rate: Callable[[float], float] = lambda progress: 1.0,
    ) -> None:
        self._masked, self._rows, self._objective = masked, rows, objective
        self._schedule, self._steps, self._fit = schedule, steps, fit
        self.method, self.generator = method, generator
        self.optimizer = _optimizer(make_optimizer, method)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate(step / steps)
        )
        self.dense = DenseOutputs(masked, rows, dense_bytes)
        self.batches = Batches(len(rows), batch_size, generator)
        self.switched_on = torch.ones(method.units.count, dtype=torch.bool, device=masked.device)

    def step(self, number: int) -> Metrics:
        """Take the step of this number; what it saw before it changed the scores.

        Raises UserError where the loss or a gradient is not finite, and where not even one sequence fits in memory.
        """
        progress = number / max(self._steps - 1, 1)
        share, method = self._schedule(progress), self.method
        chosen = distributed.mine(self.batches.next())
        gates = method.gates(share, progress, self.batches.size)  # [U] or [B, U], of all processes
        loss = self._backward(chosen, gates, method.penalty(share))
        now = method.switched_on(gates)
        sound = gradients_finite(self.optimizer.param_groups)
        seen = torch.stack([loss, now.float().mean(), (now != self.switched_on).sum(), sound])
        distributed.average([seen])
        value, density, changed, finite = seen.tolist()  # all that a step reads back from the device
        require_finite_step(number, value, finite == 1, self._masked)
        metrics: Metrics = {
            "loss": value,
            "scheduled_sparsity": scheduled_sparsity(method, share) if method.follows_schedule else None,
            "sparsity": 1 - density,
            "temperature": method.temperature_at(progress),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "changed_units": int(changed),
        }
        self._update(number)
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.switched_on = now
        return metrics

    def _backward(self, chosen: Tensor, gates: Tensor, penalty: Tensor | None) -> Tensor:
        """The loss on rows `chosen` under the gates, whose gradient, of all processes, is then in the parameters."""
        batch = self._rows[chosen.to(self._rows.device)]  # [B, T + 1]
        own = distributed.mine(gates) if gates.ndim == 2 else gates
        channels = self.method.units.to_channels(own)  # [N] or [B, N]
        loss, slope = self._fit(
            partial(backward_in_parts, self._masked, self._objective, self.dense, batch, chosen, channels)
        )
        torch.autograd.backward(
            *([channels], [slope]) if penalty is None else ([channels, penalty], [slope, None])
        )
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
        distributed.average(gradient for gradient in gradients if gradient is not None)
        return loss

    def _update(self, number: int) -> None:
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "without overflow" not in str(
                error
            ):  # "value cannot be converted to type float without overflow"
                raise
            raise UserError(
                f"step {number}: the learning rate is too large for float32; lower optimizer.lr"
            ) from error

    def tokens_of_a_step(self) -> int:
        """Predicted tokens that a step sends through the model, of all processes."""
        return self.batches.size * (self._rows.shape[1] - 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from step to step, as plain values."""
        return {name: take(getattr(self, name)) for name in CHANGING}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        for name in CHANGING:
            setattr(self, name, give(getattr(self, name), state_dict[name]))


def scheduled_sparsity(method: MaskMethod, share: float) -> float:
    """The sparsity at a share of the way to the target."""
    return 1 - int(method.pools.quotas(share).sum()) / method.units.count


def _optimizer(make_optimizer: MakeOptimizer, method: LearnedMethod) -> torch.optim.Optimizer:
    try:
        return make_optimizer(method.parameter_groups())
    except (TypeError, ValueError) as error:  # torch's own words, e.g. "Invalid learning rate: -1"
        raise UserError(f"the optimizer cannot be made: {error}; correct optimizer.*") from error


class Batches:
    """Row numbers [B] for each step: every row once per pass over the data, in a fresh order each pass.

    size: B.
    """

    def __init__(self, num_rows: int, size: int, generator: torch.Generator) -> None:
        self.size = size
        self._num_rows, self._generator = num_rows, generator
        self._waiting = torch.empty(0, dtype=torch.long)

    def next(self) -> Tensor:
        """The rows of the next step."""
        while len(self._waiting) < self.size:
            order = torch.randperm(self._num_rows, generator=self._generator)
            self._waiting = torch.cat([self._waiting, order])
        chosen, self._waiting = self._waiting[: self.size], self._waiting[self.size :]
        return chosen
