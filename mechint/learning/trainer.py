"""The loop that learns a mask while every weight stays frozen."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mechint import distributed
from mechint.errors import UserError
from mechint.learning.dense_outputs import DenseOutputs
from mechint.learning.finishing import Exchange, Finishing
from mechint.learning.finite import (
    gradients_finite,
    require_finite_outputs,
    require_finite_scores,
    require_finite_step,
)
from mechint.learning.memory import Fit, backward_in_parts
from mechint.learning.method import LearnedMethod, MaskMethod, ScoringMethod
from mechint.learning.objectives import KlObjective, Objective
from mechint.learning.resume import Saver
from mechint.masking.masked_model import MaskedModel

Metrics = dict[str, float | None]


@dataclass
class Training:
    """What a training run leaves: its history and what it cost.

    history: one entry per logged step. tokens: tokens that went through the model. scores: final scores [U].
    dense_cache_bytes: size of the dense model's outputs that were kept.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    dense_cache_bytes: int = 0
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    finishing: Finishing | None = None


@dataclass(kw_only=True)
class MaskTrainer:
    """Learns a method's scores by gradient descent on an objective under hard or soft gates.

    batch_size: sequences per step. log_every: steps between two logged lines. save_every: steps between two saved
    states, from which an interrupted run goes on. learning_rate_decay: the learning rate falls linearly to this
    fraction of itself over the run. dense_cache_gib: up to this size the dense model's outputs are kept and not
    computed again. selection_fraction: share of the calibration sequences that a finishing pass selects on and the
    steps do not see. passes: at most so many batches go through the model in all, which shows scorers fewer rows and
    ends a finishing pass early; None: no limit. activation_checkpointing: layers keep only their input for the backward
    pass and are computed again there.
    """

    batch_size: int = 8
    log_every: int = 10
    save_every: int = 20
    learning_rate_decay: float = 1.0
    dense_cache_gib: float = 1.0
    selection_fraction: float = 1 / 32
    passes: int | None = None
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "save_every"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(f"trainer.{name}={getattr(self, name)} must be a whole number of at least 1")
        if not 0 < self.selection_fraction < 1:
            raise UserError(f"trainer.selection_fraction={self.selection_fraction} must lie between 0 and 1")
        if self.passes is not None and self.passes < 1:
            raise UserError(f"trainer.passes={self.passes} must be at least 1; null sets no limit")
        self._fit = Fit(self.batch_size)

    @property
    def fit(self) -> Fit:
        """How many sequences go through the model at once."""
        return self._fit

    def train(
        self,
        masked: MaskedModel,
        rows: Tensor,
        method: MaskMethod,
        objective: Objective,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Callable[[float], float],
        steps: int,
        generator: torch.Generator,
        on_step: Callable[[int, Metrics, bool], None],
        saver: Saver | None = None,
    ) -> Training:
        """Learn from calibration rows [N, T + 1]; `on_step(step, metrics, logged)` is called after every step.

        With a `saver`, the steps go on from the state that it finds, with the same numbers as without a break.

        A method that only scores takes no steps: objective, optimizer and schedule do not concern it.
        """
        assert not any(p.requires_grad for p in masked.model.parameters()), "weights are frozen"
        if self.batch_size % distributed.size():
            raise UserError(
                f"trainer.batch_size={self.batch_size} must be a multiple of the {distributed.size()} processes"
            )
        self.fit(lambda size: assert_dense_start(masked, rows[:size, :-1]))
        if masked.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(masked.device)
        start = time.perf_counter()
        # Tokens are small beside any model: on the device from the start, no step waits for them.
        rows, selection = self._split(rows.to(masked.device), method.finishing_trials)
        if isinstance(method, ScoringMethod):
            if isinstance(masked.model.base_model, FSDPModule):
                raise UserError(
                    "scores are computed from whole weights; use a learned mask with model.shard=true"
                )
            shown = self._affordable(method, rows)
            run = Training(tokens=self.fit(lambda size: method.score(masked, shown, size)))
            require_finite_scores(method.scores(), type(method).__name__)
        else:
            assert isinstance(method, LearnedMethod)
            if self.passes is not None and steps > self.passes:
                raise UserError(f"steps={steps} is more than trainer.passes={self.passes}; lower steps")
            with masked.recomputing() if self.activation_checkpointing else nullcontext():
                run = self._learn(
                    masked,
                    rows,
                    method,
                    objective,
                    make_optimizer,
                    schedule,
                    steps,
                    generator,
                    on_step,
                    saver,
                )
        run.scores = method.scores()
        if len(selection):
            self.fit(lambda size: self._finish(masked, selection, method, run, size))
        run.seconds = time.perf_counter() - start + (saver.seconds if saver else 0)
        if masked.device.type == "cuda":
            run.peak_memory_bytes = torch.cuda.max_memory_allocated(masked.device)
        return run

    def _learn(
        self,
        masked: MaskedModel,
        rows: Tensor,
        method: LearnedMethod,
        objective: Objective,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Callable[[float], float],
        steps: int,
        generator: torch.Generator,
        on_step: Callable[[int, Metrics, bool], None],
        saver: Saver | None,
    ) -> Training:
        dense = DenseOutputs(masked, rows, int(self.dense_cache_gib * 2**30))
        optimizer = _optimizer(make_optimizer, method)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self._rate(method, step / steps)
        )
        run = Training(steps=steps)
        batches = _Batches(len(rows), self.batch_size, generator)
        parts: dict[str, Any] = {"method": method, "optimizer": optimizer, "scheduler": scheduler}
        parts |= {"dense": dense, "batches": batches, "generator": generator, "run": run}
        parts["gates"] = torch.ones(method.units.count, dtype=torch.bool, device=masked.device)
        for step in saver.steps(parts, steps, self.save_every) if saver else range(steps):
            chosen = distributed.mine(batches.next())
            progress = step / max(steps - 1, 1)
            share = schedule(progress)
            batch = rows[chosen.to(rows.device)]  # [B, T + 1]
            gates = method.gates(share, progress, self.batch_size)  # [U] or [B, U], of all processes
            own = distributed.mine(gates) if gates.ndim == 2 else gates
            channels = method.units.to_channels(own)  # [N] or [B, N]
            backward = partial(backward_in_parts, masked, objective, dense, batch, chosen, channels)
            loss, slope = self.fit(backward)
            penalty = method.penalty(share)
            torch.autograd.backward(
                *([channels], [slope]) if penalty is None else ([channels, penalty], [slope, None])
            )
            now = method.switched_on(gates)
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            distributed.average(gradient for gradient in gradients if gradient is not None)
            sound = gradients_finite(optimizer.param_groups)
            seen = torch.stack([loss, now.float().mean(), (now != parts["gates"]).sum(), sound])
            distributed.average([seen])
            value, density, changed, finite = seen.tolist()  # the only wait for the device in a step
            require_finite_step(step, value, finite == 1, masked)
            metrics = {
                "loss": value,
                "scheduled_sparsity": _scheduled(method, share) if method.follows_schedule else None,
                "sparsity": 1 - density,
                "temperature": method.temperature_at(progress),
                "learning_rate": optimizer.param_groups[0]["lr"],
                "changed_units": int(changed),
            }
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            parts["gates"] = now
            logged = step % self.log_every == 0 or step == steps - 1
            if logged:
                run.history.append({"step": step, **metrics})
            run.tokens += distributed.size() * batch[:, 1:].numel()
            on_step(step, metrics, logged)
        run.dense_cache_bytes = dense.kept_bytes
        return run

    def _affordable(self, method: ScoringMethod, rows: Tensor) -> Tensor:
        """As many of the rows as a scorer may see."""
        if self.passes is None or not method.passes_per_row:
            return rows
        return rows[: max(1, self.passes * self.batch_size // method.passes_per_row)]

    def _split(self, rows: Tensor, trials: int) -> tuple[Tensor, Tensor]:
        """Rows to learn on, and rows the finishing pass selects on; they share no row."""
        if not trials:
            return rows, rows[:0]
        count = min(max(1, round(self.selection_fraction * len(rows))), len(rows) - 1)
        if count < 1:
            raise UserError(
                "the finishing pass needs at least two calibration sequences; "
                "raise dataset.calibration_tokens or set mask.finishing_trials=0"
            )
        return rows[:-count], rows[-count:]

    def _finish(
        self, masked: MaskedModel, selection: Tensor, method: MaskMethod, run: Training, at_once: int
    ) -> None:
        length = selection.shape[1] - 1
        exchange = Exchange(
            masked,
            method.units,
            method.pools,
            selection,
            at_once,
            method.finishing_trials,
            int(self.dense_cache_gib * 2**30),
            None if self.passes is None else self.passes * self.batch_size * length - run.tokens,
        )
        run.finishing = exchange.run(method.pools.select(run.scores))
        run.tokens += run.finishing.tokens
        run.scores = method.pools.agree(run.scores, run.finishing.keep)
        assert torch.equal(method.pools.select(run.scores), run.finishing.keep)

    def _rate(self, method: LearnedMethod, progress: float) -> float:
        own = method.rate(progress)
        return own if own is not None else 1 + (self.learning_rate_decay - 1) * progress


def _scheduled(method: MaskMethod, share: float) -> float:
    return 1 - int(method.pools.quotas(share).sum()) / method.units.count


def _optimizer(
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], method: LearnedMethod
) -> torch.optim.Optimizer:
    try:
        return make_optimizer(method.parameter_groups())
    except (TypeError, ValueError) as error:  # torch's own words, e.g. "Invalid learning rate: -1"
        raise UserError(f"the optimizer cannot be made: {error}; correct optimizer.*") from error


class _Batches:
    """Row numbers [B] for each step: every row once per pass over the data, in a fresh order each pass."""

    def __init__(self, num_rows: int, batch_size: int, generator: torch.Generator) -> None:
        self._num_rows, self._batch_size, self._generator = num_rows, batch_size, generator
        self._waiting = torch.empty(0, dtype=torch.long)

    def next(self) -> Tensor:
        """The rows of the next step."""
        while len(self._waiting) < self._batch_size:
            order = torch.randperm(self._num_rows, generator=self._generator)
            self._waiting = torch.cat([self._waiting, order])
        chosen, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
        return chosen


@torch.no_grad()
def assert_dense_start(masked: MaskedModel, tokens: Tensor) -> None:
    """Check on tokens [B, T] that the all-ones mask is the dense model, KL = 0 exactly."""
    tokens = tokens.to(masked.device)
    ones = torch.ones(masked.space.num_channels, device=masked.device)
    require_finite_outputs(masked, tokens, masked.logits(tokens))
    kl = KlObjective()(masked.hidden(tokens, ones), tokens, masked.hidden(tokens), masked.head).item()
    assert kl == 0, f"the all-ones mask changes the model (KL {kl})"
