"""The pretraining job: text in, a checkpoint directory with its recipe and held-out loss out."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mechint.checkpoints.quiet import quiet
from mechint.data import TokenData
from mechint.errors import UserError
from mechint.pretraining.architectures import settle
from mechint.pretraining.pretrainer import Pretrainer, held_out
from mechint.results.directories import refuse_run
from mechint.runtime.files import write_json

log = logging.getLogger(__name__)

# Training windows start anywhere inside rows this many times as long.
ROW_WINDOWS = 8

MODEL_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")


class Architecture(Protocol):
    """What builds a fresh model."""

    def build(self, tokenizer: PreTrainedTokenizerBase, positions: int) -> PreTrainedModel:
        """A freshly initialised model."""
        ...


class DatasetMaker(Protocol):
    """Makes a dataset whose rows have the given length."""

    def __call__(self, *, sequence_length: int) -> Any:
        """A dataset of the framework."""
        ...


def pretrain(
    architecture: Architecture,
    make_dataset: DatasetMaker,
    pretrainer: Pretrainer,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_name: str,
    positions: int,
    steps: int,
    seed: int,
    device: torch.device,
    output_dir: Path,
    recipe: dict[str, Any],
) -> dict[str, Any]:
    """Train a model, save it in bf16 as a Hugging Face directory, and measure what was saved on the evaluation side.

    The evaluation side is the same that an analysis of the model on this dataset measures on, and is never trained
    on. Returns the record that is written to training.json: `training_tokens` went through the model, repeats counted,
    `text_tokens` is the size of the text that they were drawn from.
    """
    if steps < 1 or positions < 2:
        raise UserError("steps must be at least 1 and positions at least 2")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed={seed} must be a whole number from 0 to 2^63 - 1")
    refuse_run(output_dir)
    if any((output_dir / name).exists() for name in MODEL_FILES):
        raise UserError(
            f"{output_dir} holds a model already; give another output_dir, or remove that directory"
        )

    def load(length: int) -> TokenData:
        dataset = make_dataset(sequence_length=length)
        return dataset.load(tokenizer, tokenizer_name, len(tokenizer), None, seed)

    training, evaluation = load(ROW_WINDOWS * positions), load(positions)
    torch.manual_seed(seed)
    model = architecture.build(tokenizer, positions)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps to() and loses its signature
    num_parameters = sum(p.numel() for p in model.parameters())
    seen = steps * pretrainer.batch_size * positions
    log.info(
        "%d parameters; trained on %d tokens, from a text of %d",
        num_parameters,
        seen,
        training.calibration_tokens,
    )
    start = time.perf_counter()
    pretrainer.train(model, training.calibration.rows(), positions, steps, seed)
    seconds = time.perf_counter() - start
    settle(model)
    with quiet():
        _save(model, tokenizer, output_dir)
        saved = AutoModelForCausalLM.from_pretrained(output_dir, dtype=torch.float32).eval()
    saved.to(device)
    measured = held_out(
        saved, evaluation.evaluation.rows(), evaluation.evaluation_bytes, pretrainer.batch_size
    )
    record = {
        "recipe": recipe,
        "parameters": saved.num_parameters(),
        "training_tokens": seen,
        "text_tokens": training.calibration_tokens,
        "training_seconds": seconds,
        "held_out": measured,
        "held_out_digest": evaluation.evaluation_digest,
    }
    write_json(output_dir / "training.json", record)
    return record


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    model.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for weights in directory.glob("*.safetensors"):  # which are written for their owner alone
        shutil.copymode(directory / "config.json", weights)
