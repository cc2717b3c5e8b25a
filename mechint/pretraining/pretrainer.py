"""Training a small model from scratch, and measuring it on text it never saw."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from mechint.errors import UserError
from mechint.loggers.progress import lines_every

log = logging.getLogger(__name__)

LINES = 30  # in the log of a run

EMBEDDINGS = ("wte", "wpe", "embed_tokens", "lm_head")


@dataclass(kw_only=True)
class Pretrainer:
    """Next-token training with Muon on the matrices and AdamW on embeddings, norms and biases.

    Muon (Jordan et al. 2024) reaches the same held-out loss in about half the steps of AdamW at this size. The
    learning rate rises over `warmup` steps, but at most a tenth of all, stays, and falls linearly to 2 % over the last
    `decay` fraction of the steps. log_every: steps between two log lines; `auto`: as many as make LINES of them.
    """

    batch_size: int
    learning_rate: float
    embedding_learning_rate: float
    weight_decay: float
    warmup: int
    decay: float
    log_every: int | str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "warmup", "log_every"):
            value = getattr(self, name)
            if not (value == "auto" and name == "log_every") and not (isinstance(value, int) and value >= 1):
                raise UserError(f"pretrainer.{name}={value} must be a whole number of at least 1")
        for name in ("learning_rate", "embedding_learning_rate", "weight_decay", "decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"pretrainer.{name}={getattr(self, name)} must be at least 0 and finite")

    def train(self, model: PreTrainedModel, documents: Tensor, positions: int, steps: int, seed: int) -> None:
        """Train in place on random windows of `positions` tokens cut from the rows of `documents` [N, T].

        Raises UserError where the loss stops being finite.
        """
        device = model.device
        generator = torch.Generator().manual_seed(seed)
        optimizers = self._optimizers(model)
        schedulers = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda s: self._rate(s, steps)) for o in optimizers
        ]
        every = lines_every(steps, LINES) if isinstance(self.log_every, str) else self.log_every
        model.train()
        start = time.perf_counter()
        for step, window in enumerate(self._windows(documents, positions, generator, steps), 1):
            window = window.to(device)
            loss = next_token_loss(model, window)
            loss.backward()
            if not bool(loss.isfinite()):
                raise UserError(f"step {step}: the loss is {loss.item()}; lower pretrainer.learning_rate")
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if step % every == 0 or step == steps:
                seconds = time.perf_counter() - start
                log.info(
                    "step %d of %d: training loss %.3f nats per token, %.0f s",
                    step,
                    steps,
                    loss.item(),
                    seconds,
                )
        model.eval()

    def _windows(
        self, rows: Tensor, positions: int, generator: torch.Generator, steps: int
    ) -> Iterator[Tensor]:
        for _ in range(steps):
            row = torch.randint(len(rows), (self.batch_size,), generator=generator)
            first = torch.randint(rows.shape[1] - positions, (self.batch_size,), generator=generator)
            columns = first[:, None] + torch.arange(positions + 1)
            yield rows[row[:, None], columns]

    def _optimizers(self, model: PreTrainedModel) -> list[torch.optim.Optimizer]:
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim == 2 and not any(part in name for part in EMBEDDINGS)
            (matrices if is_matrix else others).append(parameter)
        muon = torch.optim.Muon(
            matrices, lr=self.learning_rate, weight_decay=self.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        adamw = torch.optim.AdamW(
            others, lr=self.embedding_learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        return [muon, adamw]

    def _rate(self, step: int, steps: int) -> float:
        left = (steps - step) / max(1.0, self.decay * steps)
        warmup = max(1, min(self.warmup, steps // 10))
        return min(1.0, (step + 1) / warmup) * min(1.0, 0.02 + 0.98 * left)


def next_token_loss(model: PreTrainedModel, rows: Tensor, reduction: str = "mean") -> Tensor:
    """Next-token loss in nats of rows [B, T + 1], whose first T tokens predict the last T."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits  # [B, T, V]
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction=reduction)


@torch.inference_mode()
def held_out(model: PreTrainedModel, rows: Tensor, num_bytes: int | None, batch_size: int) -> dict[str, Any]:
    """Loss in nats per token, and bits per byte where the bytes are known, of rows [M, T + 1]."""
    batches = rows.to(model.device).split(batch_size)
    nats = sum(next_token_loss(model, batch, reduction="sum").item() for batch in batches)
    tokens = rows[:, 1:].numel()
    measured = {"tokens": tokens, "loss": nats / tokens}
    if num_bytes is not None:
        measured["bits_per_byte"] = nats / math.log(2) / num_bytes
    return measured
