"""A few learning steps of a tiny model on random tokens."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mechint.data.batch import Batch
from mechint.learning import MaskTrainer
from mechint.learning.recipe import Recipe
from mechint.learning.resume import SavedStates, Saver
from mechint.learning.trainer import Training
from mechint.masking import MaskedModel
from mechint.masking.ablation import ZERO, Ablation
from mechint.methods import CubicSchedule, NormalizedSGD
from mechint.methods.method import MakeOptimizer, MaskMethod
from mechint.metrics import KL, Metric
from mechint.runtime.signals import Interrupted, Interruption

ROWS = torch.randint(3, 97, (12, 17), generator=torch.Generator().manual_seed(0))


class SmallMemory(MaskedModel):
    """A model whose device holds so many sequences at once."""

    capacity = 1

    def hidden(self, batch: Batch | Tensor, gates: Tensor | None = None, ablation: Ablation = ZERO) -> Tensor:
        if len(batch) > self.capacity:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB")
        return super().hidden(batch, gates, ablation)


def learn(
    masked: MaskedModel,
    method: MaskMethod,
    trainer: MaskTrainer | None = None,
    objective: Metric = KL,
    make_optimizer: MakeOptimizer = partial(NormalizedSGD, lr=0.1),  # noqa: B008
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
                Batch.of_rows(ROWS),
                Recipe(
                    method=method,
                    objective=objective,
                    make_optimizer=make_optimizer,
                    schedule=CubicSchedule(end=0.8),
                    steps=steps,
                ),
                generator,
                on_step,
                saver,
            )
        except Interrupted:
            interruption.asked = None
            return Training()
