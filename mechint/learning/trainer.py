"""The loop that learns a mask while every weight stays frozen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.learning.engine import engine
from mechint.learning.finishing import Exchange, Finishing
from mechint.learning.finite import require_finite_outputs, require_finite_scores
from mechint.learning.fit import Fit, largest_batch
from mechint.learning.learner import Learner, StepMetrics
from mechint.learning.recipe import Recipe
from mechint.learning.resume import Saver
from mechint.loggers.progress import lines_every
from mechint.masking.masked_model import MaskedModel
from mechint.methods.method import LearnedMethod, ScoringMethod
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.metric import KL, Metric
from mechint.runtime import distributed

# Called with the number of a step, its metrics, and whether they are part of the history.
OnStep = Callable[[int, StepMetrics, bool], None]

# Sequences at once before trainer.batch_size=auto has found how many fit.
FIRST_GUESS = 8

# Of metrics.jsonl, with trainer.log_every=auto.
LINES = 50

# Above these a setting is a slip.
MOST_SEQUENCES, MOST_GIB = 2**16, 2**12


@dataclass
class Training:
    """What a training run leaves: its history and what it cost.

    history: one entry per logged step. batch_size: sequences per step. tokens: tokens that went through the model.
    scores: final scores [U]. step_seconds: of a step, without finishing.
    dense_cache_bytes: size of the dense model's outputs that were kept.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    batch_size: int = 0
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    dense_cache_bytes: int = 0
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    finishing: Finishing | None = None

    def state_dict(self) -> dict[str, Any]:
        """What the steps have left so far; the rest follows from the last of them."""
        return {"history": [dict(line) for line in self.history], "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        self.history, self.tokens = list(state_dict["history"]), int(state_dict["tokens"])


@dataclass(kw_only=True)
class MaskTrainer:
    """Learns a method's scores by gradient descent on an objective under hard or soft gates.

    batch_size: sequences per step; `auto`: the largest power of two that fits into memory, at most all there are.
    log_every: steps between two logged lines; `auto`: as many as make LINES of them. save_every: steps between two
    saved states, from which an interrupted run continues. learning_rate_decay: the learning rate falls linearly to this
    fraction of itself over the run.
    dense_cache_gib: the dense model's outputs are kept up to this size, and computed again beyond it.
    selection_fraction: fraction of the calibration sequences that the finishing pass selects on and the steps do not
    see. passes: most batches through the model in all; scorers then use fewer rows, and the finishing pass ends
    earlier; None: no limit. finishing_share: fraction of these passes reserved for the finishing pass.
    activation_checkpointing: layers keep only their input for the backward pass and are computed again there.
    compile: run steps through torch.compile, which takes a minute or two at first. deterministic: use only algorithms
    that repeat to the last bit, which costs some speed on CUDA.
    """

    batch_size: int | str = 8
    log_every: int | str = "auto"
    save_every: int = 20
    learning_rate_decay: float = 1.0
    dense_cache_gib: float = 1.0
    selection_fraction: float = 1 / 32
    passes: int | None = None
    finishing_share: float = 0.25
    activation_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "save_every"):
            value, automatic = getattr(self, name), name != "save_every"
            if automatic and value == "auto":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(
                    f"trainer.{name}={value} must be a whole number of at least 1{', or auto' * automatic}"
                )
        if isinstance(self.batch_size, int) and self.batch_size > MOST_SEQUENCES:
            raise UserError(f"trainer.batch_size={self.batch_size} must be at most {MOST_SEQUENCES}")
        if not 0 <= self.dense_cache_gib <= MOST_GIB:
            raise UserError(
                f"trainer.dense_cache_gib={self.dense_cache_gib} must lie between 0 and {MOST_GIB}; 0 keeps nothing"
            )
        if not 0 <= self.learning_rate_decay <= 1:
            raise UserError(
                f"trainer.learning_rate_decay={self.learning_rate_decay} must lie in [0, 1]; "
                "it is the fraction of the learning rate at the end"
            )
        if not 0 < self.selection_fraction < 1:
            raise UserError(f"trainer.selection_fraction={self.selection_fraction} must lie between 0 and 1")
        if not 0 <= self.finishing_share < 1:
            raise UserError(f"trainer.finishing_share={self.finishing_share} must lie in [0, 1)")
        if self.passes is not None and self.passes < 1:
            raise UserError(f"trainer.passes={self.passes} must be at least 1; null sets no limit")
        self._fit = Fit(self.batch_size if isinstance(self.batch_size, int) else FIRST_GUESS)
        self._found: tuple[MaskedModel, int] | None = None  # by batch_size=auto

    @property
    def fit(self) -> Fit:
        """How many sequences go through the model at once."""
        return self._fit

    def train(
        self,
        masked: MaskedModel,
        calibration: Batch,
        recipe: Recipe,
        generator: torch.Generator,
        on_step: OnStep = lambda *_: None,
        saver: Saver | None = None,
        on_trial: Callable[[int], None] = lambda tried: None,
    ) -> Training:
        """Learn from calibration data; `on_step(step, metrics, logged)` is called after every step.

        With a `saver`, the steps continue from the state that it finds, with the same numbers as without a break.
        on_trial: called with the number of every exchange that the finishing pass tries.

        A method that only scores takes no steps: optimizer and schedule do not concern it.
        """
        method = recipe.method
        assert not any(p.requires_grad for p in masked.model.parameters()), "weights are frozen"
        if isinstance(self.batch_size, int) and self.batch_size % distributed.size():
            raise UserError(
                f"trainer.batch_size={self.batch_size} must be a multiple of the {distributed.size()} processes"
            )
        self.fit(lambda size: assert_dense_start(masked, calibration[:size]))
        start = time.perf_counter()
        # Tokens are small beside any model: on the device from the start, no step waits for them.
        batch, selection = self._split(calibration.to(masked.device), method.finishing_trials)
        with engine(masked, self.activation_checkpointing, self.compile):
            batch_size = self._batch_size(masked, batch, recipe.objective)
            if masked.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(masked.device)
            if isinstance(method, ScoringMethod):
                run = self._score(masked, batch, recipe, batch_size)
            else:
                assert isinstance(method, LearnedMethod)
                if self.passes is not None and recipe.steps + recipe.basis.passes > self.passes:
                    raise UserError(
                        f"steps={recipe.steps} and the {recipe.basis.passes} passes of the basis are more than "
                        f"trainer.passes={self.passes}; lower steps"
                    )
                learner = Learner(
                    masked,
                    batch,
                    recipe,
                    batch_size,
                    generator,
                    self.fit,
                    self._dense_bytes,
                    partial(self._rate, method),
                )
                looked = self.fit(lambda size: method.look(Evaluator(masked, batch, recipe.ablation, size)))
                learner.forget_gradients()
                run = self._learn(learner, recipe.steps, on_step, saver)
                run.tokens += looked
        run.scores = method.final_scores() if isinstance(method, LearnedMethod) else method.scores()
        run.tokens += recipe.basis.passes * run.batch_size * calibration.length
        if len(selection):
            self.fit(
                lambda size: self._finish(
                    Evaluator(masked, selection, recipe.ablation, size, self._dense_bytes),
                    recipe,
                    run,
                    on_trial,
                )
            )
        run.seconds = time.perf_counter() - start + (saver.seconds if saver else 0)
        if masked.device.type == "cuda":
            run.peak_memory_bytes = torch.cuda.max_memory_allocated(masked.device)
        return run

    def _score(self, masked: MaskedModel, batch: Batch, recipe: Recipe, batch_size: int) -> Training:
        method = recipe.method
        assert isinstance(method, ScoringMethod)
        if isinstance(masked.model.base_model, FSDPModule):
            raise UserError(
                "scores are computed from whole weights; use a learned mask with model.shard=true"
            )
        shown = self._affordable(recipe, batch, batch_size)
        tokens = self.fit(lambda size: method.score(Evaluator(masked, shown, recipe.ablation, size)))
        require_finite_scores(method.scores(), type(method).__name__)
        return Training(tokens=tokens, batch_size=batch_size)

    def _learn(self, learner: Learner, steps: int, on_step: OnStep, saver: Saver | None) -> Training:
        run, started = Training(steps=steps), time.perf_counter()
        every = lines_every(steps, LINES) if isinstance(self.log_every, str) else self.log_every
        for step in saver.steps(learner, run, steps, self.save_every) if saver else range(steps):
            metrics = learner.step(step)
            logged = step % every == 0 or step == steps - 1
            if logged:
                run.history.append({"step": step, **metrics})
            run.tokens += learner.tokens_of_a_step()
            on_step(step, metrics, logged)
        in_steps = time.perf_counter() - started + (saver.seconds if saver else 0)
        run.step_seconds = in_steps / max(steps, 1)
        run.batch_size = learner.batches.size  # of the attempt that chose it
        run.dense_cache_bytes = learner.dense.kept_bytes
        return run

    def _batch_size(self, masked: MaskedModel, batch: Batch, objective: Metric) -> int:
        """Sequences per step, of all processes."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        if self._found is None or self._found[0] is not masked:
            size = largest_batch(masked, batch, objective, self._dense_bytes)
            self._found = masked, size
            self._fit.size = size
        return self._found[1]

    @property
    def _dense_bytes(self) -> int:
        return int(self.dense_cache_gib * 2**30)

    def _affordable(self, recipe: Recipe, batch: Batch, batch_size: int) -> Batch:
        """As many of the sequences as a scorer may see, so that the passes reach for its finishing pass as well."""
        method = recipe.method
        assert isinstance(method, ScoringMethod)
        if self.passes is None or not method.passes_per_row:
            return batch
        passes = passes_before_finishing(self.passes, self.finishing_share, recipe)
        return batch[: max(1, passes * batch_size // method.passes_per_row)]

    def _split(self, batch: Batch, trials: int) -> tuple[Batch, Batch]:
        """Sequences to learn on, and those the finishing pass selects on; they share none."""
        if not trials:
            return batch, batch[:0]
        count = min(max(1, round(self.selection_fraction * len(batch))), len(batch) - 1)
        if count < 1:
            raise UserError(
                "the finishing pass needs at least two calibration sequences; "
                "raise dataset.calibration_tokens or set mask.finishing_trials=0"
            )
        return batch[:-count], batch[-count:]

    def _finish(
        self, selection: Evaluator, recipe: Recipe, run: Training, on_trial: Callable[[int], None]
    ) -> None:
        method, length = recipe.method, selection.batch.length
        exchange = Exchange(
            selection,
            recipe.objective,
            method.units,
            method.pools,
            method.finishing_trials,
            None if self.passes is None else self.passes * run.batch_size * length - run.tokens,
            on_trial,
        )
        run.finishing = exchange.run(method.pools.select(run.scores))
        run.tokens += run.finishing.tokens
        run.scores = method.pools.agree(run.scores, run.finishing.keep)
        assert torch.equal(method.pools.select(run.scores), run.finishing.keep)

    def _rate(self, method: LearnedMethod, progress: float) -> float:
        own = method.rate(progress)
        return own if own is not None else 1 + (self.learning_rate_decay - 1) * progress


def passes_before_finishing(passes: int, finishing_share: float, recipe: Recipe) -> int:
    """How many of all passes the steps or scores of a recipe may take: what its basis and finishing pass leave."""
    finishing = round(passes * finishing_share) if recipe.method.finishing_trials else 0
    return max(1, passes - recipe.basis.passes - finishing)


@torch.no_grad()
def assert_dense_start(masked: MaskedModel, batch: Batch) -> None:
    """Check on a batch that the all-ones mask is the dense model, KL = 0 exactly."""
    batch = batch.to(masked.device)
    ones = torch.ones(masked.space.num_channels, device=masked.device)
    require_finite_outputs(masked, batch.tokens, masked.logits(batch))
    kl = KL.mean(masked.hidden(batch, ones), batch, masked.hidden(batch), masked.head).item()
    assert kl == 0, f"the all-ones mask changes the model (KL {kl})"
