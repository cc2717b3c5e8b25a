"""How strongly every query, key and value channel reads its layer's input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechint.masking.masked_model import MaskedModel
from mechint.masking.projections import attention_modules
from mechint.masking.space import LayerShape


@dataclass
class RowNorms:
    """Euclidean norms of the rows of one layer's W_Q [H, C], W_K [G, C] and W_V [G, C]."""

    query: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def zeros(cls, layer: LayerShape, device: torch.device) -> RowNorms:
        """Norms to be filled in, in double precision."""
        heads = (layer.num_query_heads, layer.num_kv_heads, layer.num_kv_heads)
        widths = (layer.key_width, layer.key_width, layer.value_width)
        shapes = zip(heads, widths, strict=True)
        return cls(*(torch.zeros(shape, dtype=torch.double, device=device) for shape in shapes))


def row_norms(masked: MaskedModel, token: Tensor, chunk: int = 256) -> tuple[list[RowNorms], int]:
    """Row norms for every layer, and how many tokens went through the model.

    They are the norms of the gradients of the final queries, keys and values with respect to the attention module's
    input, at position 0, where RoPE turns nothing. For linear projections, fused ones too, these gradients are the
    weights' rows exactly; with QK-norm or a latent in between they are the map's linearisation at the input that
    `token`, a LongTensor of one element, gives. Biases do not count. The token goes through as batches of at most
    `chunk` rows, each row for another channel, so that one backward pass differentiates them all.
    """
    layers = masked.space.layers
    recorder = _Gradients(masked)
    highest = max(max(layer.num_query_heads * layer.key_width, layer.num_channels("v")) for layer in layers)
    tokens = 0
    with ExitStack() as stack:
        for position, module in enumerate(attention_modules(masked)):
            handle = module.register_forward_pre_hook(recorder.leaf_for(position), with_kwargs=True)
            stack.enter_context(handle)
        stack.enter_context(masked.recording(recorder))
        stack.enter_context(torch.enable_grad())
        for start in range(0, highest, chunk):
            recorder.start, size = start, min(chunk, highest - start)
            batch = token.reshape(1, 1).expand(size, 1).to(masked.device)
            masked.model.base_model(input_ids=batch, use_cache=False)
            tokens += size
    return recorder.norms, tokens


class _Gradients:
    """Makes every layer's input a leaf and differentiates the layer's states with respect to it."""

    def __init__(self, masked: MaskedModel) -> None:
        self.start = 0
        self.norms = [RowNorms.zeros(layer, masked.device) for layer in masked.space.layers]
        self._leaves: dict[int, Tensor] = {}

    def leaf_for(self, position: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        """A hook that replaces a layer's input [B, 1, D] by a leaf."""

        def before(
            module: nn.Module,
            arguments: tuple[Any, ...],
            keywords: dict[str, Any],
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            states = arguments[0] if arguments else keywords["hidden_states"]
            leaf = self._leaves[position] = states.detach().requires_grad_()
            if arguments:
                return (leaf, *arguments[1:]), keywords
            return arguments, keywords | {"hidden_states": leaf}

        return before

    def __call__(self, position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        norms = self.norms[position]
        for states, target in ((query, norms.query), (key, norms.key), (value, norms.value)):
            flat = states[:, :, 0].flatten(1)  # [B, heads * C]
            stop = min(self.start + len(flat), flat.shape[1])
            if stop <= self.start:
                continue
            rows = torch.arange(stop - self.start, device=flat.device)
            chosen = flat[rows, rows + self.start].sum()
            (gradient,) = torch.autograd.grad(chosen, self._leaves[position], retain_graph=True)  # [B, 1, D]
            target.view(-1)[self.start : stop] = gradient[: len(rows), 0].double().norm(dim=-1)
