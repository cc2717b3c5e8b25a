"""What the runs of one checkpoint have in common: the model, its tokens, and what the dense and empty model do."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mechint.analysis.beginning import beginning_notes
from mechint.analysis.tasks import solved
from mechint.checkpoints import Checkpoint, CheckpointLoader
from mechint.data import Dataset, TokenData
from mechint.masking import MaskedModel
from mechint.masking.ablation import Ablation
from mechint.masking.examining import check_routing
from mechint.metrics.evaluation import Evaluator, Measured, measure
from mechint.metrics.metric import KL, KlDivergence, Metric, NegativeLogLikelihood
from mechint.runtime.device import pick_device

# What is measured of every model.
USUAL = (KlDivergence, NegativeLogLikelihood)

# Called with the number of evaluation sequences that are done.
OnSequences = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is analysed: a checkpoint, and the text that it is analysed on.

    checkpoint: as `loader` understands it. device, dtype: names, or "auto".
    """

    checkpoint: str
    loader: CheckpointLoader
    dataset: Dataset
    device: str = "auto"
    dtype: str = "auto"

    def fingerprint(self) -> str:
        """What tells the checkpoint's content from another's, without loading it."""
        return self.loader.fingerprint(self.checkpoint)


@dataclass
class Prepared:
    """A loaded checkpoint, and its tokens for one dataset and seed."""

    checkpoint: Checkpoint
    masked: MaskedModel
    data: TokenData
    _baselines: dict[Any, Measured] = field(default_factory=dict)

    def seen_in(self, view: MaskedModel) -> Prepared:
        """The same with the model in another basis."""
        return replace(self, masked=view)

    def measure(
        self,
        kept: Tensor,
        ablation: Ablation,
        batch_size: int,
        on_sequences: OnSequences | None = None,
        objective: Metric | None = None,
    ) -> Measured:
        """The dense, empty, masked and complement model on evaluation data, in this order, for kept channels bool [N].

        objective: a metric to measure besides loss and KL, unless it is one of these. What the dense and the empty
        model do does not depend on the mask and is measured once.
        """
        if objective is not None and (isinstance(objective, USUAL) or objective.positions != "counted"):
            objective = None
        key = (self.data.evaluation_digest, batch_size, ablation.identity, objective)
        variants: dict[str, Tensor | None] = {"masked": kept, "complement": ~kept}
        known = self._baselines.get(key)
        if known is None:
            variants = {"dense": None, "empty": torch.zeros_like(kept), **variants}
        evaluator = Evaluator(
            self.masked, self.data.evaluation, ablation, batch_size, on_sequences=on_sequences
        )
        bytes_and_documents = self.data.evaluation_bytes, self.data.evaluation_documents
        measured = measure(evaluator, variants, *bytes_and_documents, objective)
        if known is not None:
            measured = known.and_then(measured)
        self._baselines[key] = measured.first(2)
        return measured

    def kl(self, gates: Tensor, ablation: Ablation, batch_size: int) -> Tensor:
        """KL(dense || gated) on every evaluation sequence, double [M], nats per token, for gates float [N]."""
        return Evaluator(self.masked, self.data.evaluation, ablation, batch_size)([gates], [KL])[0, 0]


class Preparation:
    """Loads checkpoints and tokens, and keeps the latest ones, so that memory never holds two models.

    Runs of one process that differ only in how masks are learned share them.
    """

    def __init__(self) -> None:
        self._prepared: Prepared | None = None
        self._model_key: Any = None
        self._data_key: Any = None

    def __call__(self, inputs: Inputs, seed: int) -> Prepared:
        """The checkpoint on its device, with its tokens; seed: which calibration sequences are drawn."""
        source, loader, dataset, dtype = inputs.checkpoint, inputs.loader, inputs.dataset, inputs.dtype
        torch_device = pick_device(inputs.device)
        # The digest of the files, since a file may change while a sweep goes on.
        model_key = (source, inputs.fingerprint(), repr(loader), str(torch_device), dtype)
        data_key = (repr(dataset), seed)
        before = self._prepared if model_key == self._model_key else None
        if before is not None and data_key == self._data_key:
            return before
        self.forget()
        checkpoint = before.checkpoint if before else loader.load(source, torch_device, dtype)
        data = dataset.load(
            checkpoint.tokenizer, checkpoint.name, checkpoint.vocab_size, checkpoint.max_positions, seed
        )
        masked = before.masked if before else MaskedModel(checkpoint.model)
        check_routing(masked, data.evaluation.tokens[:1].to(masked.device))
        data = solved(data, masked)
        data = replace(data, notes=(*data.notes, *beginning_notes(checkpoint, masked, data)))
        self._prepared = Prepared(checkpoint, masked, data, before._baselines if before else {})
        self._model_key, self._data_key = model_key, data_key
        return self._prepared

    def forget(self) -> None:
        """Let go of everything."""
        self._prepared = self._model_key = self._data_key = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# Of this process; the jobs of a sweep use it.
SHARED = Preparation()
