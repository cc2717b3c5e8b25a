"""How heads attend, as the model's own attention does it, and whether products of queries and keys explain it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from mechint.data.batch import Batch
from mechint.masking import MaskedModel
from mechint.masking.ablation import ZERO, Ablation
from mechint.masking.weights import attention_modules, output_projections

# Patterns that differ by no more are the same; or by so many rounding errors of what the model computes in.
TOLERANCE, ROUNDING = 1e-3, 8

# A layer's position and one of its query heads.
Head = tuple[int, int]


@torch.no_grad()
def attention_of(
    masked: MaskedModel,
    batch: Batch,
    heads: Sequence[Head],
    gates: Tensor | None = None,
    ablation: Ablation = ZERO,
) -> dict[Head, Tensor]:
    """Attention [B, T, T] of query heads on a batch, on the CPU; rows of padding say nothing.

    It is the model's own, whatever it is made of (caps of scores, windows, biases of positions; with sinks rows add up
    to less than 1): values are replaced by some that tell tokens apart, so that the heads' outputs are their weights.
    The output projection then gets the outputs that it always gets, so that later layers see nothing of it.

    Raises UserError where a head's output is not read by one linear layer.
    """
    if not heads:
        return {}
    batch, length = batch.to(masked.device), batch.tokens.shape[1]
    projections, modules = output_projections(masked.in_channels()), attention_modules(masked)
    probes = [
        _Probe(
            module,
            [head for place, head in heads if place == position],
            len(batch),
            length,
            shape.weight.shape,
        )
        for position, (module, shape) in enumerate(zip(modules, projections, strict=True))
    ]
    with ExitStack() as stack:
        stack.enter_context(masked.after_gates(probes, gates, ablation, batch))
        for probe, projection in zip(probes, projections, strict=True):
            stack.enter_context(projection.module.register_forward_pre_hook(probe.see))
        masked.hidden(batch)
        while sum(probe.go_on() for probe in probes):  # all of them go on
            masked.hidden(batch)
    return {
        (position, head): torch.cat(probe.found[head], -1)
        for position, probe in enumerate(probes)
        for head in probe.heads
    }


class _Probe:
    """Reads the attention of some heads of one layer: in the first pass what they put out, then their weights."""

    def __init__(
        self, module: nn.Module, heads: list[int], rows: int, length: int, shape: torch.Size
    ) -> None:
        self.heads = list(dict.fromkeys(heads))
        self.found: dict[int, list[Tensor]] = {head: [] for head in self.heads}
        self._module, self._length = module, length
        self._shape = (rows, length, *shape[1:])  # [B, T, H, C]
        self._begin: int | None = None  # the first of the tokens that are told apart
        self._next = 0
        self._outputs: Tensor | None = None

    def go_on(self) -> bool:
        """Turn to the next tokens, as many as values have channels; whether there are any."""
        self._begin = self._next if self.heads and self._next < self._length else None
        self._next += self._shape[-1]
        return self._begin is not None

    def before_rotation(self, states: str, values: Tensor) -> Tensor:
        """Nothing changes there."""
        return values

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self._begin is None or module is not self._module:
            return key, value
        told = torch.zeros_like(value)
        channels = torch.arange(min(value.shape[-1], self._length - self._begin), device=value.device)
        told[:, :, self._begin + channels, channels] = 1
        return key, told

    def see(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The hook of the output projection."""
        if not self.heads:
            return None
        if self._begin is None:
            if self._outputs is None:
                self._outputs = arguments[0]
            return None
        weights = arguments[0].reshape(self._shape)[..., : self._length - self._begin]
        for head in self.heads:
            self.found[head].append(weights[:, :, head].float().cpu())
        assert self._outputs is not None
        return (self._outputs, *arguments[1:])


def softmax_attention(query: Tensor, key: Tensor, scaling: float, there: Tensor | None = None) -> Tensor:
    """Plain attention [..., T, T] of queries and keys [..., T, C], to earlier tokens alone that are no padding (there:
    bool [..., T]).
    """
    scores = query @ key.mT * scaling
    return scores.masked_fill(~_seen(scores, there), -torch.inf).softmax(-1).nan_to_num()


def scaling_that_explains(
    masked: MaskedModel, position: int, own: Tensor, query: Tensor, key: Tensor, there: Tensor
) -> float | None:
    """What products of queries and keys [B, T, C] are multiplied with so that their softmax is a head's own attention
    [B, T, T], but for what sinks take; None where its attention is something else.

    What the layer itself names is right in most architectures, but some multiply the queries before.
    """
    shares = own[there] / own[there].sum(-1, keepdim=True)
    close = max(TOLERANCE, ROUNDING * torch.finfo(masked.model.dtype).eps)
    named = getattr(attention_modules(masked)[position], "scaling", None)
    for scaling in (named, fitted_scaling(own, query, key, there)):
        if isinstance(scaling, float):
            plain = softmax_attention(query, key, scaling, there)[there]
            if bool((shares - plain).abs().amax() <= close):
                return scaling
    return None


def fitted_scaling(own: Tensor, query: Tensor, key: Tensor, there: Tensor) -> float:
    """What products of queries and keys [B, T, C] are multiplied with, from a head's own attention [B, T, T]."""
    products = query @ key.mT
    used = _seen(products, there) & there.unsqueeze(-1) & (own > 1e-4)  # the logarithm of less is rounding

    def centred(values: Tensor) -> Tensor:
        values = values.masked_fill(~used, 0)
        return (values - values.sum(-1, keepdim=True) / used.sum(-1, keepdim=True).clamp_min(1)) * used

    products, logs = centred(products).double(), centred(own.clamp_min(1e-30).log()).double()
    return float((products * logs).sum() / products.square().sum().clamp_min(1e-30))


def _seen(scores: Tensor, there: Tensor | None) -> Tensor:
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return seen if there is None else seen & there.unsqueeze(-2)


@torch.no_grad()
def turned_directions(
    masked: MaskedModel, batch: Batch, chosen: Sequence[tuple[int, int, int]]
) -> list[Tensor]:
    """What directions of keys before the rotation are after it at the place of every token, each [B, T, C] on the CPU.

    chosen: layer positions, KV heads and numbers of directions.
    """
    basis = masked.basis
    assert basis is not None, "without a basis there are no directions"
    turning = [_Turning(module) for module in attention_modules(masked)]
    for row, (position, head, number) in enumerate(chosen):
        turning[position].rows.append((row, head, basis.of(masked.space, position, "k").write[head, number]))
    with masked.in_channels().after_gates(turning):
        masked.hidden(batch.tokens[:1].expand(len(chosen), -1).to(masked.device))
    found = {row: turned for one in turning for row, turned in one.found.items()}
    there = batch.attention_mask
    places = torch.arange(batch.tokens.shape[1]).expand(batch.tokens.shape)
    if there is not None:
        places = (there.long().cumsum(1) - 1).clamp_min(0)
    return [found[row][places.cpu()] for row in range(len(chosen))]


class _Turning:
    """Puts directions in the place of some heads' keys, one for each row of a batch, and keeps what becomes of them."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[tuple[int, int, Tensor]] = []
        self.found: dict[int, Tensor] = {}
        self._module = module

    def before_rotation(self, states: str, values: Tensor) -> Tensor:
        """Keys [B, G, T, C] with the directions among them."""
        if states != "key" or not self.rows:
            return values
        values = values.clone()
        for row, head, direction in self.rows:
            values[row, head] = direction.to(values)
        return values

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if module is self._module:
            for row, head, _ in self.rows:
                self.found[row] = key[row, head].float().cpu()
        return key, value
