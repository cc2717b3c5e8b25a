"""The tokens that an analysis works on."""

import hashlib
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mechint.data.batch import Batch
from mechint.data.leakage import Leakage


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked of a model in prompts, beside the prompts themselves.

    paraphrases: the same question in other words; None where there are none. needed_accuracy: of the dense model, below
    which there is nothing to find. example: the first evaluation prompt, as text: clean, corrupted, right, wrong.
    accuracy: of the dense model on all prompts of every side, left_out: how many of these it gets wrong, which are then
    left out; None before it was asked. shared_prompts: the share of evaluation prompts that, clean or corrupted, are
    also a clean or corrupted calibration prompt, before any is left out.
    """

    name: str
    paraphrases: Batch | None
    needed_accuracy: float
    example: dict[str, str]
    shared_prompts: float = 0.0
    accuracy: dict[str, float] | None = None
    left_out: dict[str, int] | None = None


@dataclass(frozen=True, eq=False)
class TokenData:
    """Rows of tokens to learn masks on, and other rows to measure them on.

    In running text each sequence holds T inputs and, shifted by one, T answers; within a side every answer occurs once.
    """

    name: str
    tokenizer: str
    calibration: Batch
    """N sequences"""
    evaluation: Batch
    """M sequences"""
    evaluation_bytes: int | None
    """UTF-8 bytes of the text of the evaluation answers; None where unknown."""
    evaluation_digest: str
    """sha256 of the evaluation rows, of prompts with their answers: two runs with the same digest were measured on the
    same tokens."""
    evaluation_documents: Tensor | None = None
    """The number of the document in which each evaluation sequence begins, of a prompt that of its family, LongTensor
    [M]; None where unknown."""
    bos: tuple[int, ...] = ()
    """Tokens that every row begins with, which are never answers that count."""
    leakage: Leakage | None = None
    """How much of the evaluation text also occurs in the calibration text; None where it was not measured."""
    notes: tuple[str, ...] = ()
    """Facts that a reader of the numbers must know."""
    task: Task | None = None
    """What prompts ask; None for running text."""

    @property
    def calibration_tokens(self) -> int:
        """Predicted tokens on the calibration side."""
        return self.calibration.size

    @property
    def evaluation_tokens(self) -> int:
        """Predicted tokens on the evaluation side."""
        return self.evaluation.size


def digest_of_rows(rows: np.ndarray) -> str:
    """sha256 of rows [M, T+1], the same on every machine and for every integer type."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def digest_of_prompts(prompts: Batch) -> str:
    """sha256 of all that is asked in prompts: tokens, padding, answers, and the corrupted prompts."""
    digest = hashlib.sha256()
    for name in ("tokens", "attention_mask", "counted", "answers", "foils", "paired"):
        part: Tensor | None = getattr(prompts, name)
        if part is not None:
            digest.update(f"{name} {list(part.shape)} ".encode())
            digest.update(part.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()
