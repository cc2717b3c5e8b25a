"""The tokens that an analysis works on."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class TokenData:
    """Rows of tokens to learn masks on, and other rows to measure them on.

    Each row holds T inputs and, shifted by one, T targets; within a side every target occurs once.
    """

    name: str
    tokenizer: str
    calibration: torch.Tensor
    """int64 [N, T+1]"""
    evaluation: torch.Tensor
    """int64 [M, T+1]"""
    evaluation_bytes: int | None
    """UTF-8 bytes of the text of the M*T evaluation targets; None where unknown."""
    evaluation_digest: str
    """sha256 of the evaluation rows: two runs with the same digest were measured on the same tokens."""
    notes: tuple[str, ...] = ()
    """Facts that a reader of the numbers must know."""

    @property
    def calibration_tokens(self) -> int:
        """Predicted tokens on the calibration side, N*T."""
        return self.calibration[:, 1:].numel()

    @property
    def evaluation_tokens(self) -> int:
        """Predicted tokens on the evaluation side, M*T."""
        return self.evaluation[:, 1:].numel()


def digest_of_rows(rows: np.ndarray) -> str:
    """sha256 of rows [M, T+1], the same on every machine and for every integer type."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
