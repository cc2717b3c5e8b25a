"""One step of learning a mask, and everything that changes from step to step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.learning.finite import gradients_finite, require_finite_step
from mechint.learning.fit import Fit
from mechint.learning.recipe import Recipe
from mechint.masking.masked_model import MaskedModel
from mechint.methods.bases import LearnedBasis
from mechint.methods.method import LearnedMethod, MaskMethod
from mechint.metrics.dense_outputs import DenseOutputs
from mechint.metrics.gradients import gate_gradient, unit_gradients
from mechint.runtime import distributed

StepMetrics = dict[str, float | None]

# Sequences that an update of directions sees at least: by one alone they are led astray.
FEWEST = 2


class Learner:
    """A method that is learned on calibration data, step by step.

    batch_size: sequences per step, of all processes. fit: how many of them go through the model at once. dense_bytes:
    capacity for the dense model's outputs. learning_rate: at a part of the run in [0, 1], as a fraction of the
    optimizer's own.
    """

    def __init__(
        self,
        masked: MaskedModel,
        calibration: Batch,
        recipe: Recipe,
        batch_size: int,
        generator: torch.Generator,
        fit: Fit,
        dense_bytes: int,
        learning_rate: Callable[[float], float] = lambda progress: 1.0,
    ) -> None:
        assert isinstance(recipe.method, LearnedMethod)
        self._masked, self._calibration, self._recipe, self._fit = masked, calibration, recipe, fit
        self.method, self.generator = recipe.method, generator
        self.basis = recipe.basis if isinstance(recipe.basis, LearnedBasis) else None
        self.basis_optimizer = None if self.basis is None else self.basis.optimizer()
        self._score_steps = recipe.steps if self.basis is None else self.basis.score_steps(recipe.steps)
        self._updates = 1 if self.basis is None else self.basis.updates
        if masked.basis is not None and masked.basis.energy is not None:
            worth = unit_gradients(self.method.units, masked.basis.energy[None])[0]
            self.method.warm_start(worth.to(masked.device))
        self.optimizer = _optimizer(recipe)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda update: learning_rate(update / (self._updates * self._score_steps))
        )
        self.dense = DenseOutputs(masked, calibration, dense_bytes)
        self.batches = Batches(len(calibration), batch_size, generator)
        self.switched_on = torch.ones(self.method.units.count, dtype=torch.bool, device=masked.device)

    def step(self, number: int) -> StepMetrics:
        """Take the step of this number; what it saw before it changed the scores, of its last update.

        Raises UserError where the loss or a gradient is not finite, and where not even one sequence fits in memory.
        """
        chosen = self.batches.next()
        parts = chosen.chunk(min(self._updates, max(1, len(chosen) // (FEWEST * distributed.size()))))
        for place, part in enumerate(parts):
            metrics = self._update(number, number + place / len(parts), part)
        return metrics

    def _update(self, step: int, place: float, rows: Tensor) -> StepMetrics:
        """One update on rows of all processes, at a place between this step and the next."""
        fixed = step >= self._score_steps  # only directions are learned from here on
        progress = min(1.0, place / max(self._score_steps - 1, 1))
        assert self._recipe.schedule is not None
        share, method = self._recipe.schedule(progress), self.method
        if fixed:
            gates, penalty = method.hard_mask().float(), None
            now = gates > 0
        else:
            gates = method.gates(share, progress, len(rows))  # [U] or [B, U], of all processes
            penalty = method.penalty(share)
            now = method.switched_on(gates)
        loss = self._backward(distributed.mine(rows), gates, penalty)
        basis_groups = self.basis_optimizer.param_groups if self.basis_optimizer else []
        sound = gradients_finite([*self.optimizer.param_groups, *basis_groups])
        seen = torch.stack([loss, now.float().mean(), (now != self.switched_on).sum(), sound])
        distributed.average([seen])
        value, density, changed, finite = seen.tolist()  # all that an update reads back from the device
        require_finite_step(step, value, finite == 1, self._masked)
        metrics: StepMetrics = {
            "loss": value,
            "scheduled_sparsity": scheduled_sparsity(method, share) if method.follows_schedule else None,
            "sparsity": 1 - density,
            "temperature": method.temperature_at(progress),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "changed_units": int(changed),
        }
        if not fixed:
            self._step_optimizer(step)
            self.scheduler.step()
        self.optimizer.zero_grad()
        if self.basis is not None and self.basis_optimizer is not None:
            self.basis.step(self.basis_optimizer, self._updates * place, self._updates * self._recipe.steps)
        self._recipe.ablation.step()
        self.switched_on = now
        return metrics

    def _backward(self, chosen: Tensor, gates: Tensor, penalty: Tensor | None) -> Tensor:
        """The loss on rows `chosen` under the gates, whose gradient, of all processes, is then in the parameters."""
        batch, recipe = self._calibration[chosen], self._recipe
        own = distributed.mine(gates) if gates.ndim == 2 else gates
        channels = self.method.units.to_channels(own)  # [N] or [B, N]

        def gradient(at_once: int) -> tuple[Tensor, Tensor]:
            return gate_gradient(
                self._masked,
                batch,
                channels,
                recipe.objective,
                recipe.ablation,
                lambda part: self.dense(chosen[part]),
                at_once,
            )

        loss, slope = self._fit(gradient)
        if channels.requires_grad:
            torch.autograd.backward(
                *([channels], [slope]) if penalty is None else ([channels, penalty], [slope, None])
            )
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
        gradients += [constants.grad for constants in recipe.ablation.learned]
        distributed.average(gradient for gradient in gradients if gradient is not None)
        return loss

    def _step_optimizer(self, number: int) -> None:
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

    def forget_gradients(self) -> None:
        """Before the first step: of passes that only looked at the data."""
        self.optimizer.zero_grad()
        if self.basis_optimizer is not None:
            self.basis_optimizer.zero_grad()
        for constants in self._recipe.ablation.learned:
            constants.grad = None

    def tokens_of_a_step(self) -> int:
        """Predicted tokens that a step sends through the model, of all processes."""
        return self.batches.size * self._calibration.length

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from step to step, as tensors, numbers and containers of them."""
        return {
            "method": self.method.state_dict(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "dense": self.dense.state_dict(),
            "batches": self.batches.state_dict(),
            "generator": self.generator.get_state(),
            "switched_on": self.switched_on.cpu().clone(),
            "ablation": self._recipe.ablation.state_dict(),
            "basis": None if self.basis is None else self.basis.state_dict(),
            "basis_optimizer": None
            if self.basis_optimizer is None
            else copy.deepcopy(self.basis_optimizer.state_dict()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        for name in ("method", "optimizer", "scheduler", "dense", "batches"):
            getattr(self, name).load_state_dict(state_dict[name])
        if self.basis is not None and self.basis_optimizer is not None:
            self.basis.load_state_dict(state_dict["basis"])
            self.basis_optimizer.load_state_dict(state_dict["basis_optimizer"])
        self._recipe.ablation.load_state_dict(state_dict["ablation"])
        self.generator.set_state(state_dict["generator"])
        self.switched_on = state_dict["switched_on"].to(self.switched_on.device)


def scheduled_sparsity(method: MaskMethod, share: float) -> float:
    """The sparsity at a share of the way to the target."""
    return 1 - int(method.pools.quotas(share).sum()) / method.units.count


def _optimizer(recipe: Recipe) -> torch.optim.Optimizer:
    assert isinstance(recipe.method, LearnedMethod)
    assert recipe.make_optimizer is not None
    try:
        return recipe.make_optimizer(recipe.method.parameter_groups())
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

    def state_dict(self) -> dict[str, Any]:
        """How many rows a step takes, and which wait for their turn in this pass."""
        return {"size": self.size, "waiting": self._waiting.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        self.size, self._waiting = int(state_dict["size"]), state_dict["waiting"].clone()
