"""Sequences of tokens, and what is asked of a model at each position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechint.data.packing import even_rows, whole_families

# The positions of a batch that count, or all that are not padding.
Positions = Literal["counted", "all"]

# Fills up where a position has fewer right or wrong answers than another.
NO_TOKEN = -1


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences of T tokens; also a whole data set, of which `batch[numbers]` is a part.

    tokens: LongTensor [B, T], what the model reads. answers: LongTensor [B, T], the token that should follow at each
    position, or [B, T, A] where any of several is right, the rest NO_TOKEN; None where nobody asks. counted: bool
    [B, T], the positions that count; None: all. attention_mask: bool [B, T], False at padding; None: there is none.
    foils: like answers, wrong ones to hold against the right ones. paired: LongTensor [B, T], the prompt that each
    sequence is a clean version of. families: LongTensor [B], a number for each prompt, which it shares with those that
    are another version of it and tell no more than it alone.
    """

    tokens: Tensor
    answers: Tensor | None = None
    counted: Tensor | None = None
    attention_mask: Tensor | None = None
    foils: Tensor | None = None
    paired: Tensor | None = None
    families: Tensor | None = None

    @classmethod
    def of_rows(cls, rows: Tensor) -> Batch:
        """Running text: the first T tokens of rows [B, T + 1] predict the last T, and every position counts."""
        return cls(tokens=rows[:, :-1], answers=rows[:, 1:])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, chosen: Tensor | slice) -> Batch:
        """The sequences with these numbers, or of this slice."""
        return self._map(
            lambda part: part[chosen if isinstance(chosen, slice) else chosen.to(part.device)],
        )

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self._map(lambda part: part.to(device))

    @property
    def length(self) -> int:
        """T, padding included."""
        return self.tokens.shape[1]

    @property
    def positions(self) -> Tensor:
        """How many positions of each sequence count, double [B]."""
        if self.counted is None:
            return torch.full((len(self),), self.length, dtype=torch.double)
        return self.counted.sum(1).double().cpu()

    @property
    def size(self) -> int:
        """How many positions count in all."""
        return int(self.positions.sum())

    def at(self, positions: Positions) -> Tensor | None:
        """The positions that count, or all that are not padding, bool [B, T]; None: every one."""
        return self.counted if positions == "counted" else self.attention_mask

    def mean(self, values: Tensor, positions: Positions = "counted") -> Tensor:
        """Mean of values [B, T] over the positions of every sequence, [B], in the values' precision."""
        chosen = self.at(positions)
        if chosen is None:
            return values.mean(1)
        chosen = chosen.to(values.device)
        return torch.where(chosen, values, 0).sum(1) / chosen.sum(1)

    def some(self, wanted: int) -> Tensor:
        """The numbers of so many sequences at most, spread evenly over all there are, or of prompts whole families."""
        if self.families is None:
            return torch.from_numpy(even_rows(len(self), wanted))
        return torch.from_numpy(whole_families(self.families.cpu().numpy(), wanted))

    def rows(self) -> Tensor:
        """Running text again as rows [B, T + 1]."""
        assert self.answers is not None
        return torch.cat([self.tokens[:, :1], self.answers], 1)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.tokens),
            *(
                None if part is None else change(part)
                for part in (
                    self.answers,
                    self.counted,
                    self.attention_mask,
                    self.foils,
                    self.paired,
                    self.families,
                )
            ),
        )
