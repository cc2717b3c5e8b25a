"""How much of the evaluation text also occurs in the calibration text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NGRAM = 32
BLOCK = 1 << 20  # tokens that are looked at at once
TABLE_BITS = 24


@dataclass(frozen=True)
class Leakage:
    """shared_ngrams: the fraction of the evaluation side's runs of n tokens that occur on the calibration side."""

    shared_ngrams: float
    n: int


def measure_leakage(calibration: np.ndarray, evaluation: np.ndarray) -> Leakage:
    """Compare rows [N, T+1] with rows [M, T+1], by hashes of their runs of n tokens, of 32 or all T.

    Time grows with the number of tokens, memory with that of the evaluation side.
    """
    n = min(NGRAM, evaluation.shape[1] - 1)
    hashes = _hashes(evaluation, n).ravel()
    wanted = np.unique(hashes)
    # Most runs of the calibration side are none of the wanted: a table of their last bits says so at once.
    table = np.zeros(1 << TABLE_BITS, dtype=bool)
    table[wanted & np.uint64((1 << TABLE_BITS) - 1)] = True
    found = np.zeros(len(wanted), dtype=bool)
    step = max(1, BLOCK // calibration.shape[1])
    for start in range(0, len(calibration), step):
        block = _hashes(calibration[start : start + step], n).ravel()
        block = block[table[block & np.uint64((1 << TABLE_BITS) - 1)]]
        places = np.searchsorted(wanted, block).clip(max=len(wanted) - 1)
        found[places[wanted[places] == block]] = True
    return Leakage(float(found[np.searchsorted(wanted, hashes)].mean()), n)


def _hashes(rows: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every run of n tokens, [N, T+2-n], made of hashes of shorter ones."""
    factor = 0x9E3779B97F4A7C15
    runs = _mixed(rows.astype(np.uint64))
    total, length = np.zeros((rows.shape[0], rows.shape[1]), dtype=np.uint64), 0
    size = 1
    while size <= n:
        if n & size:  # the next `size` tokens after the `length` that are already in the total
            shifted = runs[:, length:]
            width = shifted.shape[1]
            total = total[:, :width] * np.uint64(pow(factor, size, 1 << 64)) + shifted
            length += size
        runs = runs[:, :-size] * np.uint64(pow(factor, size, 1 << 64)) + runs[:, size:]
        size *= 2
    return _mixed(total[:, : rows.shape[1] + 1 - n])


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread the values over all bits (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
