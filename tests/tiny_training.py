"""A few learning steps of a tiny model on random tokens."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechint.learning import MaskTrainer, NormalizedSGD
from mechint.learning.resume import SavedStates, Saver
from mechint.learning.trainer import Training
from mechint.masking import MaskedModel
from mechint.methods import CubicSchedule
from mechint.methods.method import MaskMethod
from mechint.metrics import KlObjective
from mechint.runtime.signals import Interrupted, Interruption

ROWS = torch.randint(3, 97, (12, 17), generator=torch.Generator().manual_seed(0))


class SmallMemory(MaskedModel):
    """A model whose device holds so many sequences at once."""

    capacity = 1

    def hidden(self, tokens: Tensor, gates: Tensor | None = None) -> Tensor:
        if len(tokens) > self.capacity:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB")
        return super().hidden(tokens, gates)


def learn(
    masked: MaskedModel,
    method: MaskMethod,
    trainer: MaskTrainer | None = None,
    objective: Any = None,
    make_optimizer: Callable[..., torch.optim.Optimizer] = partial(NormalizedSGD, lr=0.1),  # noqa: B008
    directory: Path | None = None,
    stop_after: int | None = None,
    steps: int = 8,
) -> Training:
    """What steps on ROWS leave; states are saved in `directory`; stopped after a step, if asked, they leave nothing."""
    generator = torch.Generator().manual_seed(1)
    method.prepare(masked, 0.6, generator)
    with Interruption() as interruption:

        def on_step(step: int, *_: object) -> None:
            if step == stop_after:
                interruption.asked = 15

        saver = Saver(SavedStates(directory, "digest"), interruption, lambda *_: None) if directory else None
        try:
            return (trainer or MaskTrainer(batch_size=4, save_every=2)).train(
                masked,
                ROWS,
                method,
                objective or KlObjective(),
                make_optimizer,
                CubicSchedule(end=0.8),
                steps,
                generator,
                on_step,
                saver,
            )
        except Interrupted:
            interruption.asked = None
            return Training()
