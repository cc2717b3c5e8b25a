"""The output projection of every attention layer, found by watching what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mechint.errors import UserError
from mechint.masking.attention import Hook, hooks
from mechint.masking.masked_model import MaskedModel
from mechint.masking.space import LayerShape


@dataclass(frozen=True)
class OutputProjection:
    """W_O of one attention layer.

    module: the linear layer that reads the heads' outputs. weight: float32 [D, H, C], D the width of the residual
    stream.
    """

    module: nn.Module
    weight: Tensor

    def by_group(self, num_kv_heads: int) -> Tensor:
        """The weight as [D, G, R, C], R query heads sharing each of the G KV heads."""
        return self.weight.unflatten(1, (num_kv_heads, -1))


def attention_modules(masked: MaskedModel) -> list[nn.Module]:
    """The attention module of every layer, in the order of the space."""
    return [masked.model.get_submodule(layer.name) for layer in masked.space.layers]


@torch.no_grad()
def output_projections(masked: MaskedModel) -> list[OutputProjection]:
    """The output projection of every layer.

    The values of a layer are all replaced by one random vector per KV head. Attention weights sum to one (to less
    with attention sinks), so every query head's output is that vector up to a factor, and the linear layer inside the
    attention module whose input shows it, head by head, is the output projection.

    Raises UserError where that is not exactly one linear layer, for instance where a norm or gate comes before it.
    """
    generator = torch.Generator().manual_seed(0)
    modules, layers = attention_modules(masked), masked.space.layers
    patterns = [torch.randn(layer.num_kv_heads, layer.value_width, generator=generator) for layer in layers]
    found: list[list[nn.Linear | Conv1D]] = [[] for _ in layers]

    def watch(position: int, linear: nn.Linear | Conv1D) -> Callable[..., None]:
        def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if _shows(arguments[0], patterns[position], layers[position]):
                found[position].append(linear)

        return before

    with ExitStack() as stack:
        for position, module in enumerate(modules):
            for child in module.modules():
                if isinstance(child, nn.Linear | Conv1D):
                    stack.enter_context(child.register_forward_pre_hook(watch(position, child)))
        stack.enter_context(
            hooks([(module, _constant(pattern)) for module, pattern in zip(modules, patterns, strict=True)])
        )
        tokens = torch.zeros(1, 4, dtype=torch.long, device=masked.device)
        masked.model.base_model(input_ids=tokens, use_cache=False)
    return [_projection(linears, layer) for linears, layer in zip(found, layers, strict=True)]


def _constant(pattern: Tensor) -> Hook:
    def hook(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return key, pattern.to(value)[:, None, :].expand_as(value).contiguous()

    return hook


def _shows(states: Tensor, pattern: Tensor, layer: LayerShape) -> bool:
    """Whether the last position of states [B, T, H * C] is a multiple of the pattern [G, C] in every head."""
    if states.shape[-1] != layer.num_query_heads * layer.value_width:
        return False
    heads = states.reshape(-1, layer.num_query_heads, layer.value_width)[-1].float().cpu()  # [H, C]
    expected = pattern.repeat_interleave(layer.num_query_heads // layer.num_kv_heads, 0)
    return bool((torch.cosine_similarity(heads, expected, dim=-1) > 0.999).all())


def _projection(linears: list[nn.Linear | Conv1D], layer: LayerShape) -> OutputProjection:
    if len(linears) != 1:
        raise UserError(
            f"layer {layer.name!r} does not hand its heads' outputs straight to one linear layer, which this mask "
            "method reads; use mask=fisher or another method that needs gradients only"
        )
    linear = linears[0]
    weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight  # [D, H * C]
    return OutputProjection(
        linear, weight.detach().float().unflatten(1, (layer.num_query_heads, layer.value_width))
    )


@contextmanager
def recording_heads(
    projections: Sequence[OutputProjection], function: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call function(position, heads' outputs [B, T, H, C]) at every run of an output projection inside the block."""

    def watch(position: int, shape: torch.Size) -> Callable[..., None]:
        def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            function(position, arguments[0].unflatten(-1, shape))

        return before

    with ExitStack() as stack:
        for position, projection in enumerate(projections):
            hook = watch(position, projection.weight.shape[1:])
            stack.enter_context(projection.module.register_forward_pre_hook(hook))
        yield
