"""A frozen model whose Key and Value channels can be switched on and off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mechint.data.batch import Batch
from mechint.masking.ablation import ZERO, Ablation
from mechint.masking.attention import Hook, LayerGate, hooks
from mechint.masking.basis import Basis, Maps
from mechint.masking.head import Head, WholeLogits, find_head
from mechint.masking.layers import find_layers
from mechint.masking.recomputing import recomputing
from mechint.masking.routing import enable_hooks, restore_attention
from mechint.masking.space import KINDS

# Called with a layer's position, query [B, H, T, C], key [B, G, T, C] and value [B, G, T, C].
Recorder = Callable[[int, Tensor, Tensor, Tensor], None]


class LayerHook(Protocol):
    """What sees, and may change, one layer's states: queries and keys before the rotation, where they are reached
    there, and all of them where attention gets them.
    """

    def before_rotation(self, states: str, values: Tensor) -> Tensor:
        """Queries or keys [B, heads, T, C] before the rotation; states: `query` or `key`."""
        ...

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value [B, G, T, C] to attend to."""
        ...


class MaskedModel:
    """A frozen causal language model seen as a function of its channel gates.

    The gates are one flat tensor [N] over `space` (1 keeps a channel, 0 removes it). Masks act per KV head on the
    final keys and values, after projection, bias, QK-norm and RoPE, so removing K channel c drops the term q_c k_c
    from every query head of the group, and removing V channel c drops that coordinate of the heads' output.

    basis: the coordinates that gates refer to; None: the channels. See `mechint.masking.sites.in_basis`.

    Raises UserError when not every attention layer can be reached exactly once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        assert not model.training, "load the model in eval mode"
        self.model = model
        self.implementation = enable_hooks(model)
        try:
            self._modules, self.space = find_layers(model)
        except Exception:
            restore_attention(model, self.implementation)
            raise
        self.head: Head = find_head(model)
        self._compiled: Callable[..., Any] | None = None
        self.no_tokens = torch.zeros(0, 0, dtype=torch.long)
        self.basis: Basis | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.model.device

    def logits(self, batch: Batch | Tensor, gates: Tensor | None = None, ablation: Ablation = ZERO) -> Tensor:
        """Next-token logits [B, T, V] for a batch, or tokens [B, T], under gates [N] or, per sequence, [B, N].

        Without gates it is the dense model. ablation: what takes the place of removed channels.
        """
        batch = _as_batch(batch)
        with self.gated(gates, ablation, batch):
            return self.model(**_inputs(batch), use_cache=False).logits

    def hidden(self, batch: Batch | Tensor, gates: Tensor | None = None, ablation: Ablation = ZERO) -> Tensor:
        """Final hidden states [B, T, D], of which `head` makes logits; arguments as for `logits`.

        Where the architecture's head is not understood they are the logits [B, T, V] themselves.
        """
        if isinstance(self.head, WholeLogits):
            return self.logits(batch, gates, ablation)
        batch = _as_batch(batch)
        learning = gates is not None and torch.is_grad_enabled()
        decoder = self._compiled if learning and self._compiled is not None else self.model.base_model
        with self.gated(gates, ablation, batch):
            return decoder(**_inputs(batch), use_cache=False).last_hidden_state

    def hidden_of_embeddings(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Final hidden states of the dense model, as `hidden`, for other input embeddings [B, T, D]."""
        inputs = {name: value for name, value in _inputs(batch).items() if name != "input_ids"}
        if isinstance(self.head, WholeLogits):
            return self.model(inputs_embeds=embeddings, **inputs, use_cache=False).logits
        return self.model.base_model(inputs_embeds=embeddings, **inputs, use_cache=False).last_hidden_state

    @contextmanager
    def gated(
        self, gates: Tensor | None, ablation: Ablation = ZERO, batch: Batch | None = None
    ) -> Iterator[None]:
        """Apply gates [N] to every forward pass of `model` inside the block.

        batch: what goes through the model, for ablations that depend on it.
        """
        if gates is None:
            yield
            return
        layers = self._gates(gates, ablation, batch)
        with hooks(list(zip(self._modules, layers, strict=True))):
            yield

    @contextmanager
    def recording(
        self,
        recorder: Recorder,
        gates: Tensor | None = None,
        ablation: Ablation = ZERO,
        batch: Batch | None = None,
    ) -> Iterator[None]:
        """Call `recorder` with every layer's (position, query, key, value) inside the block.

        In a basis they are in its coordinates, and queries in those that leave products with keys the same. gates,
        ablation, batch: as for `gated`; keys and values are those that attention sees under them.
        """
        maps = [None, None] * len(self._modules) if self.basis is None else self.basis.maps
        before = self.basis is not None and self.basis.keys == "before_rope"
        watching = [
            _Recording(i, recorder, before, maps[2 * i], maps[2 * i + 1]) for i in range(len(self._modules))
        ]
        with self.after_gates(watching, gates, ablation, batch):
            yield

    @contextmanager
    def after_gates(
        self,
        then: Sequence[LayerHook],
        gates: Tensor | None = None,
        ablation: Ablation = ZERO,
        batch: Batch | None = None,
    ) -> Iterator[None]:
        """Call one hook for every layer with its states in channels, as gates leave them, inside the block.

        What a hook returns is attended to. gates, ablation, batch: as for `gated`.
        """
        found: Sequence[Hook] = then
        if gates is not None:
            found = [
                _InTurn(gate, one)
                for gate, one in zip(self._gates(gates, ablation, batch), then, strict=True)
            ]
        with hooks(list(zip(self._modules, found, strict=True))):
            yield

    def _gates(self, gates: Tensor, ablation: Ablation, batch: Batch | None) -> list[LayerGate]:
        """What gates every layer, for gates [N] or [B, N]."""
        parts = self.space.parts(gates)
        made = ablation.fills(self, Batch(self.no_tokens) if batch is None else batch)
        fills: Sequence[Tensor | None] = [None] * len(parts) if made is None else made
        maps: Sequence[Maps | None] = [None] * len(parts) if self.basis is None else self.basis.maps
        before = self.basis is not None and self.basis.keys == "before_rope"
        return [
            LayerGate(parts[i], parts[i + 1], fills[i], fills[i + 1], maps[i], maps[i + 1], before)
            for i in range(0, len(parts), len(KINDS))
        ]

    def in_channels(self) -> MaskedModel:
        """The same with gates and recorded states of the channels themselves."""
        view = copy.copy(self)
        view.basis = None
        return view

    def recomputing(self) -> AbstractContextManager[None]:
        """Inside the block layers keep only their input for the backward pass: less memory, up to half more time."""
        return recomputing(self.model, [layer.name for layer in self.space.layers])

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Inside the block the passes that gates learn from, `hidden` with a gradient, are those of torch.compile.

        The first one compiles. The dense model's own passes come in many shapes and stay as they are. Nothing changes
        where the head is not understood.
        """
        self._compiled = torch.compile(self.model.base_model)
        try:
            yield
        finally:
            self._compiled = None

    def close(self) -> None:
        """Give the model back its own attention implementation."""
        restore_attention(self.model, self.implementation)


class _InTurn:
    """Gates one layer's states and then hands them on."""

    def __init__(self, gate: LayerGate, then: LayerHook) -> None:
        self._gate, self._then = gate, then

    def before_rotation(self, states: str, values: Tensor) -> Tensor:
        """The gated states before they are rotated."""
        return self._then.before_rotation(states, self._gate.before_rotation(states, values))

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return self._then(module, query, *self._gate(module, query, key, value))


class _Recording:
    """Hands one layer's states on to a recorder, in the coordinates of a basis."""

    def __init__(
        self,
        position: int,
        recorder: Recorder,
        before: bool,
        key_maps: Maps | None,
        value_maps: Maps | None,
    ) -> None:
        self._position, self._recorder, self._before = position, recorder, before
        self._key_maps, self._value_maps = key_maps, value_maps
        self._seen: dict[str, Tensor] = {}

    def before_rotation(self, states: str, values: Tensor) -> Tensor:
        """Remember queries and keys as they are before they are rotated."""
        if self._before:
            self._seen[states] = values
        return values

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        told, keys, values = self._seen.pop("query", query), self._seen.pop("key", key), value
        if self._key_maps is not None:
            groups = told.unflatten(1, (key.shape[1], -1))  # [B, G, R, T, C]
            wide = Maps(self._key_maps.read.unsqueeze(1), self._key_maps.write.unsqueeze(1))
            told, keys = wide.dual(groups).flatten(1, 2), self._key_maps.coordinates(keys)
        if self._value_maps is not None:
            values = self._value_maps.coordinates(value)
        self._recorder(self._position, told, keys, values)
        return key, value


def _as_batch(batch: Batch | Tensor) -> Batch:
    return batch if isinstance(batch, Batch) else Batch(batch)


def _inputs(batch: Batch) -> dict[str, Tensor]:
    """What a model is called with; padding on either side moves no position."""
    if batch.attention_mask is None:
        return {"input_ids": batch.tokens}
    mask = batch.attention_mask.long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return {"input_ids": batch.tokens, "attention_mask": mask, "position_ids": positions}
