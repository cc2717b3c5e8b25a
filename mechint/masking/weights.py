"""From units to weights: which rows of W_Q, W_K and W_V, and which columns of W_O, a channel belongs to.

Nothing here knows an architecture: what a weight does is found by watching what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mechint.errors import UserError
from mechint.masking.attention import Hook, hooks
from mechint.masking.basis import Maps
from mechint.masking.masked_model import MaskedModel
from mechint.masking.space import LayerShape


@dataclass(frozen=True)
class InputRows:
    """The outputs of linear layers that become the final queries, keys or values of one attention layer.

    linears: the layers. linear, row: LongTensor [heads, C], which of them a channel comes from, and which of its
    outputs. What comes after a linear layer (QK-norm, rotation, a scale) is not part of it.
    """

    linears: tuple[nn.Module, ...]
    linear: Tensor
    row: Tensor

    def weight(self) -> Tensor:
        """The rows, float32 [heads, C, D], D what the linear layers read.

        Raises UserError where heads read inputs of different widths.
        """
        rows = [_weight(module)[self.row[self.linear == number]] for number, module in self._used()]
        if len({part.shape[1] for part in rows}) > 1:
            raise UserError("a head's channels read inputs of different widths; choose another mask method")
        found = rows[0].new_empty(*self.row.shape, rows[0].shape[1])
        for (number, _), part in zip(self._used(), rows, strict=True):
            found[self.linear == number] = part
        return found

    def norms(self) -> Tensor:
        """Euclidean norms of the rows, double [heads, C]; their widths may differ."""
        found = torch.zeros(self.row.shape, dtype=torch.double)
        for number, module in self._used():
            chosen = self.linear == number
            found[chosen] = _weight(module)[self.row[chosen]].double().norm(dim=-1).cpu()
        return found

    def bias(self) -> Tensor:
        """The biases of these rows, float32 [heads, C]; 0 where there are none."""
        found = torch.zeros(self.row.shape, device=self.row.device)
        for number, module in self._used():
            own = getattr(module, "bias", None)
            if own is not None:
                chosen = self.linear == number
                found[chosen] = own.detach().float().to(found.device)[self.row[chosen]]
        return found

    def _used(self) -> list[tuple[int, nn.Module]]:
        return [(int(number), self.linears[int(number)]) for number in self.linear.unique()]


@dataclass(frozen=True)
class LayerRows:
    """Where the queries [H, C], keys [G, C] and values [G, C] of one attention layer come from."""

    query: InputRows
    key: InputRows
    value: InputRows


def _weight(module: nn.Module) -> Tensor:
    """A linear layer's weight as float32 [outputs, inputs]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (weight.T if isinstance(module, Conv1D) else weight).detach().float()


def linear_layers(module: nn.Module) -> list[nn.Module]:
    """The linear layers inside an attention module."""
    return [child for child in module.modules() if isinstance(child, nn.Linear | Conv1D)]


def attention_modules(masked: MaskedModel) -> list[nn.Module]:
    """The attention module of every layer, in the order of the space."""
    return [masked.model.get_submodule(layer.name) for layer in masked.space.layers]


@torch.no_grad()
def input_rows(masked: MaskedModel) -> list[LayerRows]:
    """For every layer, the outputs of its linear layers that its final queries, keys and values are made of.

    All outputs of the linear layers inside an attention module are replaced by +1 and -1: in pass b by the signs that
    spell bit b of the output's number. At position 0 nothing is rotated, and norms, scales and clipping keep or swap a
    channel's sign in all passes alike, so the signs of the final channels spell where they come from.

    Raises UserError where the signs spell nothing, or where a channel mixes several outputs.
    """
    masked = masked.in_channels()
    modules = attention_modules(masked)
    linears = [linear_layers(module) for module in modules]
    starts = [torch.tensor([0, *(_outputs(one) for one in layer)]).cumsum(0) for layer in linears]
    bits = max(int(start[-1]) for start in starts).bit_length()
    seen: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in modules]

    def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        seen[position].append(tuple(states[0, :, 0].sign().cpu() for states in (query, key, value)))  # type: ignore[arg-type]

    token = torch.zeros(1, 1, dtype=torch.long, device=masked.device)
    for bit in [None, *range(bits)]:
        with ExitStack() as stack:
            for layer, start in zip(linears, starts, strict=True):
                for first, one in zip(start.tolist(), layer, strict=False):
                    stack.enter_context(one.register_forward_hook(_signs(first, bit)))
            stack.enter_context(masked.recording(record))
            masked.model.base_model(input_ids=token, use_cache=False)
    return [
        LayerRows(
            *(
                _decode([pass_[kind] for pass_ in passes], tuple(layer), start, shape.name)
                for kind in range(3)
            )
        )
        for passes, layer, start, shape in zip(seen, linears, starts, masked.space.layers, strict=True)
    ]


def _outputs(linear: nn.Module) -> int:
    return len(_weight(linear))


def _signs(first: int, bit: int | None) -> Callable[..., Tensor]:
    """A hook that replaces outputs numbered from `first` by +1, or by -1 where this bit of the number is 0."""

    def after(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        numbers = torch.arange(first, first + output.shape[-1], device=output.device)
        signs = torch.ones_like(numbers) if bit is None else 2 * (numbers >> bit & 1) - 1
        return signs.to(output.dtype).expand_as(output).contiguous()

    return after


def _decode(passes: list[Tensor], linears: tuple[nn.Module, ...], starts: Tensor, name: str) -> InputRows:
    """Where channels come from, from their signs [heads, C] in the pass of all +1 and in that of every bit."""
    plain, *spelled = passes
    number = sum(
        ((sign == plain).long() << bit for bit, sign in enumerate(spelled)), torch.zeros_like(plain).long()
    )
    linear = torch.searchsorted(starts, number, right=True) - 1
    known = bool((plain != 0).all()) and all(bool((sign.abs() == 1).all()) for sign in spelled)
    if not known or bool((number >= starts[-1]).any()):
        raise UserError(
            f"layer {name!r} does not compute its queries, keys and values with linear layers whose weights "
            "this can read; use mask=fisher or another method that only needs gradients"
        )
    return InputRows(linears, linear, number - starts[linear])


@dataclass(frozen=True)
class OutputProjection:
    """W_O of one attention layer.

    module: the linear layer that reads the heads' outputs. weight: float32 [D, H, C], D the width of the residual
    stream, in the coordinates of `maps`, None for the channels.
    """

    module: nn.Module
    weight: Tensor
    maps: Maps | None = None

    def by_group(self, num_kv_heads: int) -> Tensor:
        """The weight as [D, G, R, C], R query heads sharing each of the G KV heads."""
        return self.weight.unflatten(1, (num_kv_heads, -1))


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
    return [
        _projection(
            linears, layer, None if masked.basis is None else masked.basis.of(masked.space, position, "v")
        )
        for position, (linears, layer) in enumerate(zip(found, layers, strict=True))
    ]


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


def _projection(linears: list[nn.Linear | Conv1D], layer: LayerShape, maps: Maps | None) -> OutputProjection:
    if len(linears) != 1:
        raise UserError(
            f"layer {layer.name!r} does not pass its heads' outputs straight to one linear layer, as this mask "
            "method needs; use mask=fisher or another method that only needs gradients"
        )
    weight = _weight(linears[0]).unflatten(1, (layer.num_query_heads, layer.value_width))  # [D, H, C]
    if maps is not None:
        groups = weight.unflatten(1, (layer.num_kv_heads, -1))  # [D, G, R, C]
        weight = (groups @ maps.write.mT).flatten(1, 2)
    return OutputProjection(linears[0], weight, maps)


@contextmanager
def recording_heads(
    projections: Sequence[OutputProjection], function: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call function(position, heads' outputs [B, T, H, C]) at every run of an output projection inside the block."""

    def watch(position: int, shape: torch.Size, maps: Maps | None) -> Callable[..., None]:
        def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            heads = arguments[0].unflatten(-1, shape)  # [B, T, H, C]
            if maps is not None:
                groups = heads.float().unflatten(2, (len(maps.read), -1))  # [B, T, G, R, C]
                heads = (groups @ maps.read).flatten(2, 3)
            function(position, heads)

        return before

    with ExitStack() as stack:
        for position, projection in enumerate(projections):
            hook = watch(position, projection.weight.shape[1:], projection.maps)
            stack.enter_context(projection.module.register_forward_pre_hook(hook))
        yield
