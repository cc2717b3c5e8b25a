"""What single kept units do: tokens that a value writes, tokens that drive a key and its query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mechint.circuits.norms import final_norm, linear_part
from mechint.circuits.patterns import attention_of, scaling_that_explains, turned_directions
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import MaskedModel, Units
from mechint.masking.ablation import ZERO, Ablation
from mechint.masking.weights import LayerRows, input_rows, output_projections
from mechint.results.units import Context, Match, TokenWeight, UnitMeaning, UnitMeanings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS, CONTEXTS, BEFORE = 8, 4, 6

UNTOLD_TERMS = (
    "pairs of tokens with the largest terms are not told where a head's attention is not the softmax of queries and "
    "keys alone, but of capped scores, within a window, by position or the like"
)
UNTOLD_BIASES = (
    "shares of key biases are not told where keys are normed or clipped after the bias, and for directions of keys "
    "after the rotation"
)


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
        if position < len(found.key):
            return  # a later layer that reads this one's keys and values
        for kept, states in ((found.query, query), (found.key, key), (found.value, value)):
            kept.append(states.float())

    with masked.recording(record, gates, ablation, batch):
        masked.hidden(batch)
    return found


def score_terms(query: Tensor, coordinate: Tensor, scaling: float, turned: Tensor | None = None) -> Tensor:
    """One key channel's or direction's terms [B, T, T] of a head's scores; those of all add up to the scores.

    query: [B, T], queries for it, or with `turned` [B, T, C], those that attention gets. coordinate: [B, T], of keys.
    turned: [B, T, C], a direction of keys before the rotation as it is after it at each token.
    """
    asked = query.unsqueeze(2) if turned is None else query @ turned.mT
    return asked * coordinate.unsqueeze(1) * scaling


def explain(
    masked: MaskedModel,
    batch: Batch,
    units: Units,
    chosen: Sequence[int],
    tokenizer: PreTrainedTokenizerBase | None,
) -> UnitMeanings:
    """What the units with these numbers do on a batch of prompts in the dense model.

    Units of several channels are told by their first one, those of keys and values by the first one of each.
    """
    labels = units.space.labels()
    places: list[tuple[int, int, int, int]] = []  # kind, layer position, head, channel
    for number in chosen:
        own = (units.of_channel == number).nonzero()[:, 0]
        for kind in labels["kind"][own].unique().tolist():
            channel = own[labels["kind"][own] == kind][0]
            layer, head, first = (int(labels[name][channel]) for name in ("layer", "head", "channel"))
            places.append((kind, layer, head, first))
    told = _Teller(masked, batch, [place for kind, *place in places if kind == 0], tokenizer)
    found = UnitMeanings(
        prompts=len(batch),
        units=[told.value(*place) if kind else told.key(*place) for kind, *place in places],
    )
    found.notes = told.notes()
    return found


@dataclass(frozen=True)
class _KeyBiases:
    """Key biases [G, C] and the keys [B, G, T, C] that the projections give, before norms and rotation, by layer; keys
    are left out where there are no biases at all.

    turned: whether a rotation alone comes after them, or nothing; None where keys are normed, clipped or the like.
    """

    biases: list[Tensor]
    keys: list[Tensor]
    turned: list[bool | None]
    masked: MaskedModel

    @classmethod
    def of(cls, masked: MaskedModel, batch: Batch, plain: States) -> _KeyBiases | None:
        """Those of the dense model on a batch whose states in channels are known; None where keys are not linear."""
        try:
            rows = input_rows(masked)
        except UserError:
            return None
        biases = [one.key.bias().cpu() for one in rows]
        if not any(bias.any() for bias in biases):
            return cls(biases, [], [], masked)
        keys = _projected_keys(masked, batch, rows)
        there = batch.attention_mask
        there = torch.ones_like(batch.tokens, dtype=torch.bool) if there is None else there
        turned = [
            _turned(before, after.cpu(), there.cpu(), torch.finfo(masked.model.dtype).eps)
            for before, after in zip(keys, plain.key, strict=True)
        ]
        return cls(biases, keys, turned, masked)

    def share(self, layer: int, head: int, channel: int, there: Tensor) -> float | None:
        """What `UnitMeaning.bias_share` is; None where the bias is not a part of the key that stays the same."""
        bias, basis = self.biases[layer][head], self.masked.basis
        if not bias.any():
            return 0.0
        keys, turned = self.keys[layer][:, head], self.turned[layer]
        if turned is None or (turned and basis is not None and basis.keys == "after_rope"):
            return None
        direction = torch.eye(len(bias))[channel]
        if basis is not None:
            direction = basis.of(self.masked.space, layer, "k").read[head, :, channel].detach().cpu()
        own = float(bias @ direction) ** 2
        others = float(((keys - bias) @ direction)[there].square().mean())
        return own / (own + others) if own + others > 0 else 0.0


@torch.no_grad()
def _projected_keys(masked: MaskedModel, batch: Batch, rows: Sequence[LayerRows]) -> list[Tensor]:
    """The outputs of linear layers, bias included, that every layer's keys are made of, [B, G, T, C] on the CPU."""
    heads, width = zip(*(one.key.row.shape for one in rows), strict=True)
    found = [torch.zeros(*batch.tokens.shape, g, c) for g, c in zip(heads, width, strict=True)]

    def keep(position: int, number: int) -> Callable[..., None]:
        own = rows[position].key
        chosen = (own.linear == number).cpu()

        def after(module: nn.Module, arguments: Any, output: Tensor) -> None:
            outputs = output.detach().float().cpu().reshape(*batch.tokens.shape, -1)
            found[position][..., chosen] = outputs[..., own.row.cpu()[chosen]]

        return after

    with ExitStack() as stack:
        for position, one in enumerate(rows):
            for number in one.key.linear.unique().tolist():
                module = one.key.linears[number]
                stack.enter_context(module.register_forward_hook(keep(position, number)))
        masked.hidden(batch.to(masked.device))
    return [keys.transpose(1, 2) for keys in found]


def _turned(before: Tensor, after: Tensor, there: Tensor, rounding: float) -> bool | None:
    """Whether keys [B, G, T, C] are rotated after their projection, which keeps norms up to one factor; False where
    they stay as they are, None where something else happens to them.
    """
    close = max(1e-4, 8 * rounding)
    first, last = (states.transpose(1, 2)[there] for states in (before, after))  # [tokens, G, C]
    if torch.allclose(first, last, rtol=close, atol=close * float(last.abs().amax())):
        return False
    factor = last.norm(dim=-1) / first.norm(dim=-1).clamp_min(1e-30)
    return True if float(factor.amax() - factor.amin()) <= close * float(factor.amax()) else None


class _Teller:
    """Puts states into words. keys: layer positions, heads and channels of the K units that it will be asked for."""

    def __init__(
        self,
        masked: MaskedModel,
        batch: Batch,
        keys: Sequence[Sequence[int]],
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        self._masked, self._batch, self._tokenizer = masked, batch, tokenizer
        there = batch.attention_mask
        self._there = (torch.ones_like(batch.tokens, dtype=torch.bool) if there is None else there).cpu()
        self._notes: list[str] = []
        self._layers_without: dict[str, set[int]] = {}
        self._norm = self._unembedding = None
        norm, embedding = final_norm(masked.model), masked.model.get_output_embeddings()
        if norm is None or embedding is None:
            self._notes.append("what values promote is not told: final norm or unembedding were not found")
        else:
            self._unembedding = embedding.weight.detach().float()
            self._norm = linear_part(norm, self._unembedding.shape[1], masked.device)
        self._outputs = None
        try:
            self._outputs = [one.weight for one in output_projections(masked)]
        except UserError as error:
            self._notes.append(f"what values promote is not told: {error}")
        self._states = states_on(masked, batch)
        self._plain = self._states if masked.basis is None else states_on(masked.in_channels(), batch)
        self._biases = _KeyBiases.of(masked, batch, self._plain)
        if self._biases is None and keys:
            self._notes.append("shares of key biases are not told: keys are not those of linear layers")
        self._turned: dict[tuple[int, ...], Tensor] = {}
        if masked.basis is not None and masked.basis.keys == "before_rope" and keys:
            about = [(layer, head, channel) for layer, head, channel in keys]
            self._turned = dict(zip(about, turned_directions(masked, batch, about), strict=True))
        self._query_heads = {
            (layer, head, channel): self._asking(layer, head, channel) for layer, head, channel in keys
        }
        asked = {(layer, head) for (layer, _, _), head in self._query_heads.items()}
        self._attention: dict[tuple[int, int], Tensor] = {}
        try:
            self._attention = attention_of(masked, batch, sorted(asked))
        except UserError as error:
            self._notes.append(f"pairs of tokens with the largest terms are not told: {error}")

    def notes(self) -> list[str]:
        """What could not be told."""
        return [
            *self._notes,
            *(
                f"{what} (layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, sorted(layers)))})"
                for what, layers in self._layers_without.items()
            ),
        ]

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
        logits = self._unembedding @ self._norm.after(directions[:, strongest]) * (meaning.sd or 1.0)
        top, bottom = logits.topk(TOKENS), (-logits).topk(TOKENS)
        meaning.promotes = self._weights(top.indices, top.values)
        meaning.suppresses = self._weights(bottom.indices, -bottom.values)
        return meaning

    def key(self, layer: int, head: int, channel: int) -> UnitMeaning:
        """A K unit."""
        keys = self._states.key[layer][:, head, :, channel].cpu()  # [B, T]
        meaning = self._described(layer, "k", head, channel, keys)
        meaning.query_head = self._query_heads[layer, head, channel]
        square = float(keys[self._there].square().mean())
        if square > 0:
            meaning.mean_share = float(keys[self._there].mean()) ** 2 / square
        if self._biases is not None:
            meaning.bias_share = self._biases.share(layer, head, channel, self._there)
            if meaning.bias_share is None:
                self._without(layer, UNTOLD_BIASES)
        queries = self._states.query[layer][:, meaning.query_head, :, channel].cpu()
        meaning.keys = self._contexts(keys)
        meaning.queries = self._contexts(queries)
        meaning.matches = self._matches(layer, head, channel)
        return meaning

    def _asking(self, layer: int, head: int, channel: int) -> int:
        """The query head of a group whose queries are the largest there."""
        groups = self._states.query[layer].unflatten(1, (self._masked.space.layers[layer].num_kv_heads, -1))
        squares = groups[:, head, :, :, channel].cpu().square()  # [B, R, T]
        return head * groups.shape[2] + int(squares.mean((0, 2)).argmax())

    def _without(self, layer: int, what: str) -> None:
        self._layers_without.setdefault(what, set()).add(self._masked.space.layers[layer].index)

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

    def _matches(self, layer: int, head: int, channel: int) -> list[Match]:
        """Where, at the positions that count, the unit adds most to the score of one token for another; none where the
        head's attention is not made of such terms.
        """
        query_head = self._query_heads[layer, head, channel]
        seen = self._attention.get((layer, query_head))
        if seen is None:
            return []
        query, key = self._plain.query[layer][:, query_head].cpu(), self._plain.key[layer][:, head].cpu()
        scaling = scaling_that_explains(self._masked, layer, seen, query, key, self._there)
        if scaling is None:
            self._without(layer, UNTOLD_TERMS)
            return []
        coordinate = self._states.key[layer][:, head, :, channel].cpu()
        turned = self._turned.get((layer, head, channel))
        if turned is None:
            query = self._states.query[layer][:, query_head, :, channel].cpu()
        terms = score_terms(query, coordinate, scaling, turned)
        counted = self._there if self._batch.counted is None else self._batch.counted.cpu()
        earlier = torch.ones(terms.shape[1:], dtype=torch.bool).tril()
        allowed = earlier & self._there.unsqueeze(1) & counted.unsqueeze(2)
        flat = terms.masked_fill(~allowed, -torch.inf).flatten()
        found = []
        length = terms.shape[1]
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
