"""One long stream of tokens -> rows of T inputs and, shifted by one, T targets."""

from typing import NamedTuple

import numpy as np


class TokenStream(NamedTuple):
    """Token ids, integers [S], the bytes of text each stands for, [S], and where documents begin, ascending [D].

    The latter two are None where unknown.
    """

    ids: np.ndarray
    byte_counts: np.ndarray | None
    starts: np.ndarray | None = None

    def documents(self, rows: np.ndarray, length: int) -> np.ndarray | None:
        """The number of the document in which each row [N] of this length begins, int64 [N]; None where unknown."""
        if self.starts is None:
            return None
        return np.searchsorted(self.starts, rows * length, side="right") - 1


def num_rows(num_tokens: int, length: int) -> int:
    """Rows of length + 1 tokens with stride length: each token but the first is a target at most once."""
    return max(0, (num_tokens - 1) // length)


def cut_rows(values: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """The chosen rows [N] of values [S] as int64 [N, T+1]; a memory map is read only where needed."""
    positions = rows[:, None] * length + np.arange(length + 1)  # [N, T+1]
    return values[positions].astype(np.int64)


def even_rows(available: int, wanted: int) -> np.ndarray:
    """Row numbers [<= wanted] spread evenly over all that are available, in order."""
    wanted = min(available, wanted)
    return np.arange(wanted) * available // wanted


def whole_families(families: np.ndarray, wanted: int) -> np.ndarray:
    """Row numbers [<= wanted], in order, of families [N] that are chosen at random, always the same ones, and rows that
    are alone last: they may have lost the others. Of a family that is larger than `wanted` a part.
    """
    # At an even stride it would be the same half of every pair: all men, all singulars.
    numbers, sizes = np.unique(families, return_counts=True)
    chosen, left = [], min(len(families), wanted)
    order = np.random.default_rng(0).permutation(len(numbers))
    for place in order[np.argsort(sizes[order] == 1, kind="stable")]:
        if sizes[place] <= left:
            chosen.append(numbers[place])
            left -= sizes[place]
    if not chosen:
        return even_rows(len(families), wanted)
    return np.flatnonzero(np.isin(families, chosen))


def seeded_rows(available: int, wanted: int, seed: int) -> np.ndarray:
    """Row numbers [<= wanted] chosen without replacement, in random order."""
    return np.random.default_rng(seed).choice(available, min(available, wanted), replace=False)
