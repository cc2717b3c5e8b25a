"""Circuits of one model against each other, as Markdown and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd

from mechint.comparison.report import markdown_table
from mechint.reporting.wording import ABSENT, code, counted, number
from mechint.results.between import Between, SharedChannels, Transfer

MARKDOWN, OVERLAP, TRANSFER = "circuits.md", "overlap.csv", "transfer.csv"

HOW_TO_READ = (
    "IoU is the number of channels that two masks both keep over those that either keeps; in brackets what random"
    " masks with the same counts per layer, kind and KV head have in common. Faithfulness is (masked − empty) / "
    "(dense − empty) of the logit difference, on running text of the loss: 1 as the dense model, 0 as the empty "
    "one; above 1 is another distance, no success. What a mask removes becomes what it became in the run of the "
    "column, whose evaluation data these are. Intervals are 95 % bootstraps over evaluation sequences, of one "
    "mask each."
)


class CircuitsFigure(Protocol):
    """One kind of picture of circuits against each other."""

    def draw(self, found: Between, directory: Path, dpi: int) -> list[Path]:
        """Write the picture into `directory` and return its path."""
        ...


def overlap_table(found: Between) -> pd.DataFrame:
    """overlap.csv: one row per pair of circuits."""
    return pd.DataFrame([dict(one) for one in found.overlap])


def transfer_table(found: Between) -> pd.DataFrame:
    """transfer.csv: one row per mask and data."""
    rows = [dict(one) for one in found.transfer]
    for row in rows:
        for name in ("interval", "kl_interval"):
            prefix = "faithfulness" if name == "interval" else "kl"
            row[f"{prefix}_low"], row[f"{prefix}_high"] = row.pop(name) or (None, None)
    return pd.DataFrame(rows)


def circuits_markdown(found: Between, figures: Sequence[Path]) -> str:
    """circuits.md, linking `figures`, which lie beside it."""
    names = list(found.runs)
    about = [
        [name, one.data or ABSENT, one.ablation or ABSENT, counted(one.kept, one.total), one.directory]
        for name, one in found.runs.items()
    ]
    shared = [[row, *(overlap_words(found.shared(row, column)) for column in names)] for row in names]
    lines = [
        f"# Circuits of one model: {', '.join(code(name) for name in names)}",
        "",
        *markdown_table(["circuit", "data", "ablation", "units kept", "run"], about),
        "",
        *(line for path in figures for line in (f"![{path.stem}]({path.name})", "")),
        "## What the masks share",
        "",
        "IoU of kept channels (of random masks):",
        "",
        *markdown_table(["", *names], shared),
        "",
        "## What a mask does on another's data",
        "",
    ]
    for title, words in (("Faithfulness", faithfulness_words), ("KL to the dense model [nats]", kl_words)):
        rows = [[mask, *(words(found.on(mask, data)) for data in names)] for mask in names]
        lines += [f"{title} of the mask of a row on the data of a column (95 % interval):", ""]
        lines += [*markdown_table(["mask", *names], rows), ""]
    return "\n".join([*lines, "## How to read these numbers", "", HOW_TO_READ]) + "\n"


def circuits_lines(found: Between) -> list[str]:
    """The closing lines of a comparison of circuits."""
    shared = [f"{one.first} and {one.second} share IoU {overlap_words(one)}" for one in found.overlap]
    done = [
        f"the mask of {one.mask} on {one.data}: faithfulness {faithfulness_words(one)}, KL {kl_words(one)}"
        for one in found.transfer
    ]
    return [*(f"{line}, in brackets random masks" for line in shared), *done]


def overlap_words(one: SharedChannels | None) -> str:
    """'0.41 (0.12)', a dash for a circuit and itself."""
    return ABSENT if one is None else f"{number(one.iou, 2)} ({number(one.chance, 2)})"


def faithfulness_words(one: Transfer) -> str:
    """'0.86 (0.71 to 0.98)'."""
    return _with_interval(one.faithfulness, one.interval)


def kl_words(one: Transfer) -> str:
    """The same of the KL."""
    return _with_interval(one.kl, one.kl_interval)


def _with_interval(value: float | None, ends: Sequence[float] | None) -> str:
    low, high = ends or (None, None)
    return f"{number(value, 2)} ({number(low, 2)} to {number(high, 2)})"
