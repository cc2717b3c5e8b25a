"""What single kept units do: tokens that a value writes, tokens that drive a key and its query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import MaskedModel, Units
from mechint.masking.ablation import ZERO, Ablation
from mechint.masking.weights import attention_modules, input_rows, output_projections
from mechint.results.units import Context, Match, TokenWeight, UnitMeaning, UnitMeanings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a decoder's last norm is called in transformers.
NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")

TOKENS, CONTEXTS, BEFORE = 8, 4, 6


@dataclass(frozen=True)
class States:
    """The dense or masked model's states on a batch, layer by layer, in the coordinates of masks.

    query: [B, H, T, C]. key, value: [B, G, T, C].
    """

    query: list[Tensor]
    key: list[Tensor]
    value: list[Tensor]


@torch.no_grad()
def states_on(
    masked: MaskedModel, batch: Batch, gates: Tensor | None = None, ablation: Ablation = ZERO
) -> States:
    """Run a batch and keep what attention sees."""
    found = States([], [], [])
    batch = batch.to(masked.device)

    def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        for kept, states in ((found.query, query), (found.key, key), (found.value, value)):
            kept.append(states.float())

    with masked.recording(record, gates, ablation, batch):
        masked.hidden(batch)
    return found


def scaling_of(masked: MaskedModel, position: int) -> float:
    """What a layer's scores q k are multiplied with before softmax."""
    module = attention_modules(masked)[position]
    found = getattr(module, "scaling", None)
    return float(found) if isinstance(found, float) else masked.space.layers[position].key_width ** -0.5


def score_terms(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Every channel's term of the scores, [B, H, T, T, C], of queries [B, H, T, C] and keys [B, G, T, C].

    They add up to the score that softmax takes: a head attends because of these channels.
    """
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return query.unsqueeze(3) * keys.unsqueeze(2) * scaling


def attention(query: Tensor, key: Tensor, scaling: float, there: Tensor | None = None) -> Tensor:
    """Attention [B, H, T, T] of queries and keys, to earlier tokens alone that are no padding (there: bool [B, T])."""
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ keys.mT * scaling
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if there is not None:
        seen = seen & there[:, None, None, :]
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()


def explain(
    masked: MaskedModel,
    batch: Batch,
    units: Units,
    chosen: Sequence[int],
    tokenizer: PreTrainedTokenizerBase | None,
) -> UnitMeanings:
    """What the units with these numbers do on a batch of prompts, the dense model being run once.

    Units of several channels are told by their first one.
    """
    labels = units.space.labels()
    states = states_on(masked, batch)
    told = _Teller(masked, batch, states, tokenizer)
    found = UnitMeanings(prompts=len(batch), notes=told.notes)
    for number in chosen:
        channel = int((units.of_channel == number).nonzero()[0])
        place = {name: int(values[channel]) for name, values in labels.items()}
        about = (place["layer"], place["head"], place["channel"])
        found.units = [*found.units, told.value(*about) if place["kind"] else told.key(*about)]
    return found


class _Teller:
    """Puts states into words."""

    def __init__(
        self, masked: MaskedModel, batch: Batch, states: States, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        self._masked, self._batch, self._states, self._tokenizer = masked, batch, states, tokenizer
        there = batch.attention_mask
        self._there = torch.ones_like(batch.tokens, dtype=torch.bool) if there is None else there
        self.notes: list[str] = []
        self._norm = final_norm(masked.model)
        embedding: Any = masked.model.get_output_embeddings()
        self._unembedding = None if embedding is None else embedding.weight.detach().float()
        if self._norm is None or self._unembedding is None:
            self.notes.append("what values promote is not told: final norm or unembedding were not found")
        self._outputs = self._biases = None
        try:
            self._outputs = [one.weight for one in output_projections(masked)]
        except UserError as error:
            self.notes.append(f"what values promote is not told: {error}")
        if masked.basis is None:
            try:
                self._biases = [rows.key.bias() for rows in input_rows(masked)]
            except UserError:
                self.notes.append("shares of key biases are not told: keys are not those of linear layers")
        self._turned = masked.basis is not None and masked.basis.keys == "before_rope"
        if self._turned:
            self.notes.append(
                "terms of scores are not told: directions are those of keys before the rotation"
            )

    def value(self, layer: int, head: int, channel: int) -> UnitMeaning:
        """A V unit."""
        values = self._states.value[layer][:, head, :, channel].cpu()  # [B, T]
        meaning = self._described(layer, "v", head, channel, values)
        meaning.values = self._contexts(values)
        if self._outputs is None or self._norm is None or self._unembedding is None:
            return meaning
        written = self._outputs[layer].unflatten(1, (self._masked.space.layers[layer].num_kv_heads, -1))
        directions = written[:, head, :, channel]  # [D, R]
        strongest = int(directions.norm(dim=0).argmax())
        meaning.query_head = head * directions.shape[1] + strongest
        logits = self._unembedding @ normed(self._norm, directions[:, strongest]) * (meaning.sd or 1.0)
        top, bottom = logits.topk(TOKENS), (-logits).topk(TOKENS)
        meaning.promotes = self._weights(top.indices, top.values)
        meaning.suppresses = self._weights(bottom.indices, -bottom.values)
        return meaning

    def key(self, layer: int, head: int, channel: int) -> UnitMeaning:
        """A K unit."""
        keys = self._states.key[layer][:, head, :, channel].cpu()  # [B, T]
        groups = self._states.query[layer].unflatten(1, (self._masked.space.layers[layer].num_kv_heads, -1))
        queries = groups[:, head, :, :, channel].cpu()  # [B, R, T]
        meaning = self._described(layer, "k", head, channel, keys)
        strongest = int(queries.square().mean((0, 2)).argmax())
        meaning.query_head = head * queries.shape[1] + strongest
        square = float(keys[self._there].square().mean())
        if square > 0:
            meaning.mean_share = float(keys[self._there].mean()) ** 2 / square
            if self._biases is not None:
                meaning.bias_share = float(self._biases[layer][head, channel]) ** 2 / square
        meaning.keys = self._contexts(keys)
        meaning.queries = self._contexts(queries[:, strongest])
        if not self._turned:
            meaning.matches = self._matches(layer, head, meaning.query_head, keys, queries[:, strongest])
        return meaning

    def _described(self, layer: int, kind: Any, head: int, channel: int, values: Tensor) -> UnitMeaning:
        own = values[self._there]
        return UnitMeaning(
            layer=self._masked.space.layers[layer].index,
            kind=kind,
            head=head,
            channel=channel,
            mean=float(own.mean()),
            sd=float(own.std(correction=0)),
        )

    def _matches(self, layer: int, head: int, query_head: int, keys: Tensor, queries: Tensor) -> list[Match]:
        """Where, at the positions that count, the unit adds most to the score of one token for another."""
        scaling = scaling_of(self._masked, layer)
        counted = self._there if self._batch.counted is None else self._batch.counted
        terms = score_terms(queries[:, None, :, None], keys[:, None, :, None], scaling)[
            :, 0, ..., 0
        ]  # [B, T, T]
        earlier = torch.ones(terms.shape[1:], dtype=torch.bool).tril()
        allowed = earlier & self._there.unsqueeze(1) & counted.unsqueeze(2)
        flat = terms.masked_fill(~allowed, -torch.inf).flatten()
        seen = attention(
            self._states.query[layer][:, [query_head]],
            self._states.key[layer][:, [head]],
            scaling,
            self._there.to(self._masked.device),
        )[:, 0].cpu()
        found = []
        length = keys.shape[1]
        for place in flat.topk(min(CONTEXTS, int(allowed.sum()))).indices.tolist():
            row, rest = divmod(place, length * length)
            asking, asked = divmod(rest, length)
            found.append(
                Match(
                    query=self._text(self._batch.tokens[row, asking : asking + 1]),
                    key=self._text(self._batch.tokens[row, asked : asked + 1]),
                    term=float(flat[place]),
                    attention=float(seen[row, asking, asked]),
                )
            )
        return found

    def _contexts(self, values: Tensor) -> list[Context]:
        """The positions [B, T] with the largest and the lowest values, of different tokens."""
        found: list[Context] = []
        for sign in (1, -1):
            order = (sign * values).masked_fill(~self._there, -torch.inf).flatten().argsort(descending=True)
            seen: set[int] = set()
            for place in order.tolist():
                row, position = divmod(place, values.shape[1])
                value, token = float(values[row, position]), int(self._batch.tokens[row, position])
                if len(seen) == CONTEXTS or sign * value <= 0 or not self._there[row, position]:
                    break
                if token in seen:
                    continue
                seen.add(token)
                begin = position - min(BEFORE, int(self._there[row, :position].sum()))
                before = self._text(self._batch.tokens[row, begin:position])
                now = self._text(self._batch.tokens[row, position : position + 1])
                found.append(Context(before=before, token=now, value=value))
        return found

    def _weights(self, tokens: Tensor, weights: Tensor) -> list[TokenWeight]:
        return [
            TokenWeight(token=self._text(token[None]), weight=float(weight))
            for token, weight in zip(tokens, weights, strict=True)
        ]

    def _text(self, ids: Tensor) -> str:
        numbers = ids.tolist()
        if self._tokenizer is None:
            return " ".join(map(str, numbers))
        return readable(numbers, self._tokenizer)


def readable(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Tokens as text; parts of characters under the tokenizer's own names. Ids that it does not have are left out."""
    known = [number for number in ids if number < len(tokenizer)]
    text = str(tokenizer.decode(known))
    return " ".join(map(str, tokenizer.convert_ids_to_tokens(known))) if "\ufffd" in text else text


def final_norm(model: nn.Module) -> nn.Module | None:
    """The norm after a decoder's last layer; None where it has no known name."""
    base: Any = getattr(model, "base_model", model)
    for place in (base, getattr(base, "decoder", None)):
        for name in NORMS:
            found = getattr(place, name, None)
            if isinstance(found, nn.Module) and isinstance(getattr(found, "weight", None), Tensor):
                return found
    return None


def normed(norm: nn.Module, direction: Tensor) -> Tensor:
    """A direction [D] of the residual stream after a final norm that is taken as linear: centred if the norm does so,
    times its weights; the scale, which depends on the text, is left out.
    """
    if isinstance(norm, nn.LayerNorm):
        direction = direction - direction.mean()
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return direction * weight.detach().float()
