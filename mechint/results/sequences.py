"""What the four models do on every evaluation sequence, beside a run's result."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mechint.errors import UserError
from mechint.metrics.evaluation import Measured
from mechint.results.run_files import RunFiles
from mechint.runtime.files import write_atomically

FILENAME = "evaluation.safetensors"


def save_sequences(measured: Measured, directory: Path) -> Path:
    """Write evaluation.safetensors, atomically: loss, kl and top1_agreement, double [4, M], of the dense, empty, masked
    and complement model on M evaluation sequences, means over their positions; `positions`, how many count, [M]; and,
    where known, `documents`, the number of the document of each, [M].
    """
    path = directory / FILENAME
    tensors = {name: values.contiguous() for name, values in measured.sequences.items()}
    if measured.documents is not None:
        tensors["documents"] = measured.documents.contiguous()
    with write_atomically(path) as temporary:
        temporary.write_bytes(save({**tensors, "positions": measured.positions.contiguous()}))
    return path


def load_sequences(directory: Path) -> dict[str, Tensor] | None:
    """What `save_sequences` wrote; None for runs that have no such file. Raises UserError where it is damaged."""
    path = directory / FILENAME
    if not path.exists():
        return None
    try:
        tensors = load(path.read_bytes())
        shapes = {tuple(tensors[name].shape) for name in ("loss", "kl", "top1_agreement")}
        if len(shapes) != 1 or len(tensors["positions"]) != next(iter(shapes))[-1]:
            raise ValueError("shapes differ")
    except (OSError, SafetensorError, KeyError, ValueError, torch.OutOfMemoryError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the analysis again") from error
    return tensors


def measured_by(run: RunFiles) -> Measured | None:
    """What a run measured, from its files; None for runs that did not keep it by sequence."""
    sequences = load_sequences(run.directory)
    if sequences is None:
        return None
    positions, documents = sequences.pop("positions"), sequences.pop("documents", None)
    metrics = run.result.as_json()["metrics"]
    return Measured(metrics, sequences, positions, documents)
