"""Using the mask of a finished run: the masked model, and its numbers on other data."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechint.analysis.describing import dataset_info
from mechint.analysis.preparation import Prepared
from mechint.analysis.tasks import solved
from mechint.checkpoints import Checkpoint, CheckpointLoader
from mechint.circuits.study import learn_constants
from mechint.data import Dataset, TokenData
from mechint.data.batch import Batch
from mechint.data.bos import find_beginning
from mechint.data.tasks.encoding import Prompt, PromptError, encode, make_batch
from mechint.errors import UserError, one_line
from mechint.masking import MaskedModel
from mechint.masking.ablation import Ablation, MeanAblation, ZeroAblation, known_ablations
from mechint.masking.masks import flat_keep
from mechint.masking.optimal_ablation import OptimalAblation
from mechint.masking.sites import in_basis
from mechint.metrics.evaluation import Evaluator, faithfulness, loss_degradation_percent
from mechint.metrics.metric import LOGIT_DIFF, NLL
from mechint.reporting.web.notebook import in_notebook
from mechint.results import RunFiles
from mechint.results.mask_files import load_basis
from mechint.results.result import DatasetInfo, Metrics
from mechint.results.section import Section
from mechint.runtime.device import pick_device

log = logging.getLogger(__name__)

Part = TypeVar("Part")

# Constants of the optimal ablation are not saved; they are learned again, for the mask as it ended.
OPTIMAL_STEPS, OPTIMAL_PROMPTS = 20, 12

# Sequences at once where nothing says how many memory holds.
AT_ONCE = 8


class Evaluation(Section):
    """What a saved mask does on some data: the numbers of the dense, empty, masked and complement model."""

    dataset: DatasetInfo
    metrics: Metrics
    loss_degradation_percent: float | None = None
    loss_degradation_percent_se: float | None = None
    faithfulness: float | None = None
    faithfulness_se: float | None = None


@dataclass(frozen=True)
class UnderMask:
    """A model while a mask is applied to each of its forward passes.

    model: the transformers model, which can be used like any other, for example with `model.generate`. tokenizer: None
    for a checkpoint without one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    masked: MaskedModel

    def generate(self, prompt: str, max_new_tokens: int = 50, **settings: Any) -> str:
        """The text that the masked model continues a prompt with; settings: of `model.generate`, e.g. do_sample=True.

        Raises UserError for a checkpoint without a tokenizer.
        """
        tokens, model = self._tokens(prompt), cast(Any, self.model)
        with torch.inference_mode():
            attended = torch.ones_like(tokens)
            found = model.generate(tokens, attention_mask=attended, max_new_tokens=max_new_tokens, **settings)
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=True))

    def loss(self, text: str) -> float:
        """Mean next-token loss of the masked model on a text, in nats per predicted token.

        Raises UserError for a checkpoint without a tokenizer, and for a text of fewer than two tokens.
        """
        tokens = self._tokens(text)
        if tokens.shape[1] < 2:
            raise UserError(
                "the text has fewer than two tokens, so there is nothing to predict; give a longer one"
            )
        batch = Batch(tokens=tokens[:, :-1], answers=tokens[:, 1:])
        return Evaluator(self.masked, batch).mean(None, NLL)  # no other gates than those of the block

    def logit_diff(self, prompt: str, right: str, wrong: str) -> float:
        """log P(right) - log P(wrong) after a prompt, in nats, by the first tokens in which the answers differ.

        Raises UserError for a checkpoint without a tokenizer, and for answers that cannot be told apart.
        """
        if self.tokenizer is None:
            raise UserError("the checkpoint has no tokenizer; call `model` with token ids")
        try:
            added = find_beginning(self.tokenizer, "auto").tokens
            asked = encode(Prompt(prompt, prompt, (right,), (wrong,)), self.tokenizer, added)
        except PromptError as error:
            raise UserError(f"{right!r} and {wrong!r} cannot be held against each other: {error}") from error
        return Evaluator(self.masked, make_batch([asked])).mean(None, LOGIT_DIFF)

    def _tokens(self, text: str) -> Tensor:
        if self.tokenizer is None:
            raise UserError(
                "the checkpoint has no tokenizer; call `model` with token ids, or give model.tokenizer to the analysis"
            )
        tokens: Tensor = self.tokenizer(text, return_tensors="pt").input_ids
        return tokens.to(self.model.device)


class Run(RunFiles):
    """A finished run: `masked_model` loads its checkpoint under the mask, `evaluate` measures it on other data."""

    def _repr_html_(self) -> str:
        """The run's page, in a notebook."""
        return in_notebook(self)

    @contextmanager
    def masked_model(
        self,
        device: str = "auto",
        dtype: str = "auto",
        loader: CheckpointLoader | None = None,
        ablation: Ablation | None = None,
    ) -> Iterator[UnderMask]:
        """The run's checkpoint, loaded, with the run's mask applied inside the block.

        ablation: what removed units become; None: what they became in the run. Where that needs a paired prompt or the
        position in a prompt of known length, which free text has not (`counterfactual`, `mean_per_position`), it is
        their mean over the calibration data. loader: None as in the run;
        `ModelInMemory(model, tokenizer)` where the run's model was an object in memory. Raises UserError where the
        checkpoint is not there any more or has changed.
        """
        checkpoint = self.load_checkpoint(device, dtype, loader)
        masked = MaskedModel(checkpoint.model)
        try:
            own = known_ablations().get(self.result.mask.ablation)
            if ablation is None and own is not None and (own.carries_input or own.keeps_positions):
                log.info(
                    "ablation=%s needs prompts like the run's: on free text removed units are at their mean",
                    own.name,
                )
                ablation = MeanAblation()
            view, kept, ready = self.mask_on(masked, checkpoint, ablation)
            with view.gated(kept.to(masked.device).float(), ready):
                yield UnderMask(checkpoint.model, checkpoint.tokenizer, view)
        finally:
            masked.close()

    def evaluate(
        self,
        dataset: Dataset | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = AT_ONCE,
        loader: CheckpointLoader | None = None,
    ) -> Evaluation:
        """Measure the mask on the evaluation side of a dataset; None: the run's own.

        batch_size: sequences that go through the model at once. loader: as for `masked_model`. Raises UserError as
        `masked_model`.
        """
        checkpoint = self.load_checkpoint(device, dtype, loader)
        masked = MaskedModel(checkpoint.model)
        try:
            view, kept, ablation = self.mask_on(masked, checkpoint)
            data = (
                self.own_data(checkpoint, masked)
                if dataset is None
                else _tokens_of(dataset, checkpoint, masked, 0)
            )
            measured = Prepared(checkpoint, view, data).measure(kept, ablation, batch_size)
        finally:
            masked.close()
        dense, empty, mask = (measured.metrics[name]["loss"] for name in ("dense", "empty", "masked"))
        return Evaluation(
            dataset=dataset_info(data),
            metrics=Metrics.model_validate(measured.metrics),
            loss_degradation_percent=loss_degradation_percent(dense, mask),
            loss_degradation_percent_se=measured.loss_degradation_percent_se,
            faithfulness=faithfulness(dense, empty, mask),
            faithfulness_se=measured.faithfulness_se,
        )

    def load_checkpoint(self, device: str, dtype: str, loader: CheckpointLoader | None) -> Checkpoint:
        """The run's checkpoint. Raises UserError where it is not there any more or has changed."""
        recorded = self.result.checkpoint
        if loader is None and recorded.format == "memory":
            raise UserError(
                f"the model of {self.directory} was an object in memory; give it again: "
                "loader=ModelInMemory(model, tokenizer), of mechint.checkpoints"
            )
        loader = loader or self._recorded("model", CheckpointLoader)
        checkpoint = loader.load(recorded.source, pick_device(device), dtype)
        if checkpoint.sha256 != recorded.sha256:
            raise UserError(
                f"{recorded.source} is not the checkpoint that {self.directory} analysed; "
                "restore that one, or run the analysis again"
            )
        return checkpoint

    def mask_in(self, masked: MaskedModel) -> tuple[MaskedModel, Tensor]:
        """The model in the mask's coordinates, and its kept channels bool [N]."""
        view = in_basis(masked, load_basis(masked.space, self.directory))
        return view, flat_keep(view.space, self.masks)

    def mask_on(
        self, masked: MaskedModel, checkpoint: Checkpoint, ablation: Ablation | None = None
    ) -> tuple[MaskedModel, Tensor, Ablation]:
        """The model in the mask's coordinates, its kept channels bool [N], and what removed ones become."""
        view, kept = self.mask_in(masked)
        wanted = self._recorded_ablation() if ablation is None else ablation
        if wanted.name == ZeroAblation.name:
            return view, kept, wanted
        calibration = self.own_data(checkpoint, masked).calibration
        return view, kept, fitted(wanted, view, self._learned_on(calibration), kept)

    def ablation_for(self, view: MaskedModel, calibration: Batch, kept: Tensor) -> Ablation:
        """What removed units become in this run, for a mask kept, bool [N], that may be another run's."""
        return fitted(self._recorded_ablation(), view, self._learned_on(calibration), kept)

    def _learned_on(self, calibration: Batch) -> Batch:
        """The calibration sequences without those that a search chose among masks by."""
        return calibration[: len(calibration) - int(self.result.config.get("held_out", 0))]

    def _recorded_ablation(self) -> Ablation:
        return self._recorded("ablation", Ablation)  # type: ignore[type-abstract]

    def own_data(self, checkpoint: Checkpoint, masked: MaskedModel) -> TokenData:
        """The tokens that the run had. Raises UserError where they are not the same any more."""
        dataset = self._recorded("dataset", Dataset)  # type: ignore[type-abstract]
        data = _tokens_of(dataset, checkpoint, masked, self.result.seed or 0)
        if data.evaluation_digest != self.result.dataset.evaluation_digest:
            raise UserError(
                f"the data of {self.directory} have changed since the run; run the analysis again"
            )
        return data

    def _recorded(self, key: str, kind: type[Part]) -> Part:
        """The object of the configuration's section `key`, made again."""
        try:
            return _made(self.result.config[key], kind)
        except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
            raise UserError(
                f"the configuration of {self.directory} does not describe its {key} ({one_line(error, 120)}); "
                "run the analysis again"
            ) from error


def fitted(
    ablation: Ablation, view: MaskedModel, calibration: Batch, kept: Tensor, at_once: int = AT_ONCE
) -> Ablation:
    """An ablation that knows its calibration data; constants that are learned serve the mask kept, bool [N]."""
    ready = ablation.fit(view, calibration, at_once)
    if isinstance(ready, OptimalAblation):
        return learn_constants(view, calibration[:OPTIMAL_PROMPTS], kept, ready, OPTIMAL_STEPS, at_once)
    return ready


def _made(node: Mapping[str, Any], kind: type[Part]) -> Part:
    """An object of class `kind` from its recorded settings, {_target_: class path, setting: plain value}.

    The file may be a stranger's, so nothing but a class of that kind is called. Raises ValueError, or what an
    impossible path or setting raises.
    """
    module, _, name = str(node["_target_"]).rpartition(".")
    if not module.startswith("mechint."):
        raise ValueError(f"{node['_target_']} is not a class of mechint")
    made = getattr(importlib.import_module(module), name)
    if not (isinstance(made, type) and issubclass(made, kind)):
        raise ValueError(f"{node['_target_']} is not a {kind.__name__}")
    return made(**{key: value for key, value in node.items() if not key.startswith("_")})


def _tokens_of(dataset: Dataset, checkpoint: Checkpoint, masked: MaskedModel, seed: int) -> TokenData:
    data = dataset.load(
        checkpoint.tokenizer, checkpoint.name, checkpoint.vocab_size, checkpoint.max_positions, seed
    )
    return solved(data, masked.in_channels())
