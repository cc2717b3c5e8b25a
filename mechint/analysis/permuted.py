"""The null control's model: the same weights in random places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def permuted_weights(model: PreTrainedModel, seed: int) -> Iterator[int]:
    """Permute the entries inside every attention and MLP weight matrix for the time of the block.

    Yields how many matrices there are. Embeddings, the output projection to the vocabulary, biases and norms stay, and
    so do the values that each matrix holds; which entry is where is random. Afterwards every weight is bitwise what it
    was. Only one matrix at a time needs extra memory.
    """
    matrices = block_matrices(model)
    _permute(matrices, seed, undo=False)
    try:
        yield len(matrices)
    finally:
        _permute(matrices, seed, undo=True)


def block_matrices(model: PreTrainedModel) -> list[Tensor]:
    """The weight tensors of two and more dimensions, without those of embeddings and of the output projection."""
    outside = {
        id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    if (head := model.get_output_embeddings()) is not None:
        outside |= {id(parameter) for parameter in head.parameters()}
    return [p.data for p in model.parameters() if p.ndim >= 2 and id(p) not in outside]


def _permute(matrices: list[Tensor], seed: int, undo: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    for matrix in matrices:
        order = torch.randperm(matrix.numel(), generator=generator).to(matrix.device)
        flat = matrix.flatten()
        shuffled = torch.empty_like(flat)
        if undo:
            shuffled[order] = flat
        else:
            shuffled = flat[order]
        matrix.copy_(shuffled.view_as(matrix))
