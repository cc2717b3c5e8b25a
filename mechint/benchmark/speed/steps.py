"""The steps that are compared, on one model and one batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from mechint.data.batch import Batch
from mechint.learning.fit import Fit, Result
from mechint.learning.learner import Learner
from mechint.learning.recipe import Recipe
from mechint.masking import MaskedModel
from mechint.methods import ConstantSchedule, TopK
from mechint.metrics import KL, NLL, Metric

# Learning goes on for so many steps, or longer; its schedules do not move.
STEPS = 10**6


class TimedFit(Fit):
    """Adds up the process time of passes through the model."""

    seconds = 0.0

    def __call__(self, work: Callable[[int], Result]) -> Result:
        """The result of the work."""
        start = time.process_time()
        result = super().__call__(work)
        self.seconds += time.process_time() - start
        return result


class Steps:
    """One step each, on rows [B, T + 1] of random tokens.

    plain: forward and backward pass of the frozen model, with a gradient only into the first layer's input. nll, kl:
    a whole step of the default method as `MaskTrainer` takes it, half of the channels removed: draw gates, forward and
    backward into the gates, scores, optimizer; the dense outputs for `kl` are there already. kl compiled: the same
    with trainer.compile=true, if asked for. fit: knows what of the steps was spent in the model.
    """

    def __init__(
        self, model: PreTrainedModel, batch_size: int, sequence_length: int, compile_: bool = False
    ) -> None:
        self.model, self.masked = model, MaskedModel(model)
        vocab_size = model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(vocab_size, (batch_size, sequence_length + 1), generator=generator)
        self.rows = rows.to(model.device)
        self.fit = TimedFit(batch_size)
        self._nll, self._kl = self._learner(NLL), self._learner(KL)
        self._kl.dense(torch.arange(batch_size))
        self._number, self._compile = 0, compile_

    @property
    def all(self) -> dict[str, Callable[[], None]]:
        """Every step by its name; `plain` is first."""
        return {
            "plain": self.plain,
            "nll": partial(self._learn, self._nll),
            "kl": partial(self._learn, self._kl),
            **({"kl compiled": self._compiled} if self._compile else {}),
        }

    def beside_the_model(self, repeats: int) -> list[float]:
        """Milliseconds of the process that steps of `nll` take outside of the model and its loss, on the CPU."""
        found = []
        for _ in range(repeats):
            before, start = self.fit.seconds, time.process_time()
            self._learn(self._nll)
            found.append(1e3 * (time.process_time() - start - (self.fit.seconds - before)))
        return found

    def plain(self) -> None:
        """Whole logits and torch's own cross entropy, through the attention that masking would use."""
        embedding = self.model.get_input_embeddings()
        start = embedding(self.rows[:, :-1]).detach().requires_grad_()
        logits = self.model(inputs_embeds=start, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1).float(), self.rows[:, 1:].flatten()).backward()

    def _learner(self, objective: Metric) -> Learner:
        method, generator = TopK(), torch.Generator().manual_seed(0)
        method.prepare(self.masked, 0.5, generator)
        return Learner(
            self.masked,
            Batch.of_rows(self.rows),
            Recipe(method=method, objective=objective, schedule=ConstantSchedule(), steps=STEPS),
            len(self.rows),
            generator,
            self.fit,
            dense_bytes=2**40,
        )

    def _compiled(self) -> None:
        with self.masked.compiled():
            self._learn(self._kl)

    def _learn(self, learner: Learner) -> None:
        learner.step(self._number)
        self._number += 1
