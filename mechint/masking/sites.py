"""Where queries and keys are before they are rotated: the module of an attention layer that hands them on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mechint.errors import UserError
from mechint.masking.attention import HOOK
from mechint.masking.basis import Basis
from mechint.masking.layers import some_tokens
from mechint.masking.masked_model import MaskedModel
from mechint.masking.weights import InputRows, attention_modules, input_rows

# How a module's output holds states [B, heads, T, C]: as they are, with heads after positions, heads and channels flat,
# or at certain places of a longer last axis.
Layout = Literal["heads first", "heads last", "flat", "rows"]

NUM_TOKENS = 3

# Set on a model whose attention hooks see queries and keys before they are rotated.
MARK = "_mechint_before_rotation"
SAME = 1 - 1e-5  # of the cosine of what is the same up to a factor


@dataclass(frozen=True)
class Site:
    """A module whose output holds the states of a layer before the rotation.

    heads, width: of the states. rows: LongTensor [heads, C], where they are on the last axis of the output, for the
    layout `rows`.
    """

    module: nn.Module
    layout: Layout
    heads: int
    width: int
    rows: Tensor | None = None

    def get(self, output: Tensor) -> Tensor:
        """The states [B, heads, T, C] in an output of the module."""
        if self.layout == "heads first":
            return output
        if self.layout == "heads last":
            return output.transpose(1, 2)
        if self.rows is not None:
            output = output[..., self.rows.flatten().to(output.device)]
        return output.unflatten(-1, (self.heads, self.width)).transpose(1, 2)

    def put(self, output: Tensor, states: Tensor) -> Tensor:
        """The output with other states in their place."""
        if self.layout == "heads first":
            return states
        last = states.transpose(1, 2)
        if self.layout == "heads last":
            return last
        flat = last.flatten(-2)
        if self.rows is None:
            return flat
        return output.index_copy(-1, self.rows.flatten().to(output.device), flat.to(output.dtype))


@dataclass(frozen=True)
class LayerSites:
    """Where one attention layer's queries and keys are before the rotation."""

    query: Site
    key: Site


@torch.no_grad()
def sites_before_rotation(masked: MaskedModel) -> list[LayerSites]:
    """For every layer the last modules whose outputs are its queries, and its keys, before they are rotated.

    Every token is put at position 0, where the rotation changes nothing, and each module's output is held against
    the queries and keys that attention gets (which a rotary scaling may multiply by a constant). So QK-norms, fused
    projections and partial rotations are found without knowing the architecture.

    Raises UserError where a layer's keys or queries are nowhere whole before the rotation.
    """
    masked = masked.in_channels()
    modules, rows = attention_modules(masked), input_rows(masked)
    outputs: list[list[tuple[nn.Module, Tensor]]] = [[] for _ in modules]
    final: list[tuple[Tensor, Tensor] | None] = [None for _ in modules]

    def watch(position: int) -> Callable[..., None]:
        def after(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[position].append((module, output))

        return after

    def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        final[position] = query, key

    tokens = some_tokens(masked.model, 1, NUM_TOKENS)
    with ExitStack() as stack:
        for position, attention in enumerate(modules):
            for child in attention.modules():
                if child is not attention:
                    stack.enter_context(child.register_forward_hook(watch(position)))
        stack.enter_context(masked.recording(record))
        masked.model(input_ids=tokens, position_ids=torch.zeros_like(tokens), use_cache=False)
    found = []
    for position, (seen, states, own) in enumerate(zip(outputs, final, rows, strict=True)):
        assert states is not None
        query = _last(seen, states[0], own.query)
        key = _last(seen, states[1], own.key)
        if query is None or key is None:
            raise UserError(
                f"layer {masked.space.layers[position].name!r} never holds its whole keys before the rotation; use "
                "basis.keys=after_rope"
            )
        found.append(LayerSites(query, key))
    return found


def in_basis(masked: MaskedModel, basis: Basis | None) -> MaskedModel:
    """The same model with gates that refer to the coordinates of a basis; None: to the channels.

    Raises UserError where keys are to be gated before a rotation that cannot be reached.
    """
    view = copy.copy(masked)
    view.basis = basis
    if basis is not None and basis.keys == "before_rope":
        reach_before_rotation(masked)
    return view


def reach_before_rotation(masked: MaskedModel) -> None:
    """Let the hook of every attention module see its queries and keys before they are rotated; once per model."""
    if getattr(masked.model, MARK, False):
        return
    for attention, sites in zip(attention_modules(masked), sites_before_rotation(masked), strict=True):
        sites.key.module.register_forward_hook(_tell(attention, {"query": sites.query, "key": sites.key}))
        if sites.query.module is not sites.key.module:
            sites.query.module.register_forward_hook(_tell(attention, {"query": sites.query}))
    setattr(masked.model, MARK, True)


def _tell(attention: nn.Module, sites: dict[str, Site]) -> Callable[..., Tensor | None]:
    """A hook that shows an output's states to the attention module's hook, and takes over what that makes of them."""

    def after(module: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        before_rotation = getattr(getattr(attention, HOOK, None), "before_rotation", None)
        if before_rotation is None:
            return None
        for name, site in sites.items():
            if site.module is module:
                states = site.get(output)
                changed = before_rotation(name, states)
                if changed is not states:
                    output = site.put(output, changed)
        return output

    return after


def _last(seen: list[tuple[nn.Module, Tensor]], states: Tensor, rows: InputRows) -> Site | None:
    """The last of the outputs that holds these states [1, heads, T, C]."""
    _, heads, _, width = states.shape
    for module, output in reversed(seen):
        for site in _candidates(module, output, heads, width, rows):
            held = site.get(output)
            if held.shape == states.shape and _proportional(held, states):
                return site
    return None


def _candidates(module: nn.Module, output: Tensor, heads: int, width: int, rows: InputRows) -> list[Site]:
    """The ways in which an output may hold states."""
    if output.ndim == 4:
        return [Site(module, layout, heads, width) for layout in ("heads first", "heads last")]
    if output.ndim != 3:
        return []
    if output.shape[-1] == heads * width:
        return [Site(module, "flat", heads, width)]
    used = rows.linear.unique()
    if len(used) == 1 and rows.linears[int(used)] is module:
        return [Site(module, "rows", heads, width, rows.row)]
    return []


def _proportional(first: Tensor, second: Tensor) -> bool:
    a, b = first.double().flatten(), second.double().flatten()
    return bool(torch.cosine_similarity(a, b, dim=0) > SAME)
