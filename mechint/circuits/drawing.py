"""Which head reads what another one writes, and how heads attend with and without the mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mechint.circuits.meaning import States, attention, readable, scaling_of, states_on
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import MaskedModel, Units
from mechint.masking.ablation import Ablation
from mechint.masking.weights import input_rows, output_projections
from mechint.results.diagram import CircuitDrawing, Example, HeadNode, Pattern, ReadEdge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# So many of the strongest edges are kept, and patterns of so many heads on so many prompts, of whose tokens the last
# ones are shown. Weights are rounded: a picture shows no more, and a page holds all of them.
EDGES, PATTERNS, EXAMPLES, TOKENS, DIGITS = 40, 4, 3, 48, 4

Reader = Literal["k", "q", "v"]


@torch.no_grad()
def draw(
    masked: MaskedModel,
    batch: Batch,
    units: Units,
    keep: Tensor,
    ranking: Tensor,
    ablation: Ablation,
    tokenizer: PreTrainedTokenizerBase | None,
) -> CircuitDrawing:
    """The drawing of a mask keep, bool [U], whose ranking [U] says which heads matter most; patterns are those of the
    batch's first prompts.
    """
    space, kept = masked.space, units.to_channels(keep.cpu())
    found = CircuitDrawing()
    counts = {
        (position, head): (
            int(space.view(kept, position, "k")[head].sum()),
            int(space.view(kept, position, "v")[head].sum()),
        )
        for position, layer in enumerate(space.layers)
        for head in range(layer.num_kv_heads)
    }
    found.nodes = [
        HeadNode(layer=space.layers[position].index, head=head, k_kept=k, v_kept=v)
        for (position, head), (k, v) in counts.items()
        if k or v
    ]
    try:
        edges = read_edges(masked, kept)
    except UserError as error:
        found.notes = [f"edges are not told: {error}"]
        edges = []
    if edges:
        found.chance = float(torch.tensor([edge.score for edge in edges]).median())
        found.edges = sorted(edges, key=lambda edge: -edge.score)[:EDGES]
    if masked.basis is not None and masked.basis.keys == "before_rope":
        found.notes = [*found.notes, "attention patterns are not drawn for directions before the rotation"]
        return found
    gates = kept.float().to(masked.device)
    heads = _query_heads(masked, batch[:1], _most_important(units, keep, ranking))
    found.examples = [
        _example(masked, batch[number : number + 1], heads, gates, ablation, tokenizer)
        for number in range(min(EXAMPLES, len(batch)))
    ]
    return found


def read_edges(masked: MaskedModel, kept: Tensor) -> list[ReadEdge]:
    """All edges between heads with kept channels, bool [N]. Raises UserError where the weights cannot be read."""
    space = masked.space
    written = [one.weight.float().cpu() for one in output_projections(masked)]  # [D, H, C]
    rows = input_rows(masked)
    writers: dict[tuple[int, int], Tensor] = {}
    readers: dict[tuple[int, int, Reader], Tensor] = {}
    for position, layer in enumerate(space.layers):
        keys, values = (space.view(kept, position, kind) for kind in ("k", "v"))
        groups = layer.num_kv_heads
        read = {
            "k": rows[position].key.weight().cpu(),
            "v": rows[position].value.weight().cpu(),
            "q": rows[position].query.weight().cpu().unflatten(0, (groups, -1)),  # [G, R, C, D]
        }
        if masked.basis is not None:
            of_keys, of_values = (masked.basis.of(space, position, kind) for kind in ("k", "v"))
            read["k"] = of_keys.read.cpu().mT @ read["k"]
            read["v"] = of_values.read.cpu().mT @ read["v"]
            read["q"] = of_keys.write.cpu()[:, None] @ read["q"]
        for head in range(groups):
            if values[head].any():
                whole = written[position].unflatten(1, (groups, -1))[:, head][..., values[head]]
                writers[position, head] = whole.flatten(1)  # [D, R * kept]
                readers[position, head, "v"] = read["v"][head][values[head]]
            if keys[head].any():
                readers[position, head, "k"] = read["k"][head][keys[head]]
                readers[position, head, "q"] = read["q"][head][:, keys[head]].flatten(0, 1)
    return [
        ReadEdge(
            source=(space.layers[source[0]].index, source[1]),
            target=(space.layers[position].index, head),
            kind=kind,
            score=float((weight @ columns).norm() / (weight.norm() * columns.norm()).clamp_min(1e-30)),
        )
        for source, columns in writers.items()
        for (position, head, kind), weight in readers.items()
        if position > source[0]
    ]


def _example(
    masked: MaskedModel,
    prompt: Batch,
    heads: list[tuple[int, int]],
    gates: Tensor,
    ablation: Ablation,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Example:
    """How query heads, given by layer position and number, attend on a batch of one prompt."""
    there = _there(prompt)
    ids = prompt.tokens[there].tolist()
    dense, under = states_on(masked, prompt), states_on(masked, prompt, gates, ablation)
    return Example(
        tokens=[
            str(number) if tokenizer is None else readable([number], tokenizer) for number in ids[-TOKENS:]
        ],
        patterns=[
            Pattern(
                layer=masked.space.layers[position].index,
                query_head=head,
                dense=_rounded(_patterns(masked, dense, position, there)[head]),
                masked=_rounded(_patterns(masked, under, position, there)[head]),
            )
            for position, head in heads
        ],
        left_out=max(0, len(ids) - TOKENS),
    )


def _query_heads(masked: MaskedModel, prompt: Batch, heads: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of each KV head the query head that is surest of where to look from the last token of a prompt."""
    there, dense, found = _there(prompt), states_on(masked, prompt), []
    for position, head in heads:
        layer = masked.space.layers[position]
        repeats = layer.num_query_heads // layer.num_kv_heads
        own = slice(head * repeats, (head + 1) * repeats)
        surest = _patterns(masked, dense, position, there)[own, -1].max(-1).values.argmax()
        found.append((position, head * repeats + int(surest)))
    return found


def _there(prompt: Batch) -> Tensor:
    """Which tokens are no padding, bool [1, T]."""
    there = prompt.attention_mask
    return torch.ones_like(prompt.tokens, dtype=torch.bool) if there is None else there


def _rounded(pattern: Tensor) -> list[list[float]]:
    """Attention [T, T] among the last tokens."""
    return [[round(weight, DIGITS) for weight in row] for row in pattern[-TOKENS:, -TOKENS:].tolist()]


def _patterns(masked: MaskedModel, states: States, position: int, there: Tensor) -> Tensor:
    """Attention [H, T, T] of the first prompt, without padding."""
    query, key = states.query[position], states.key[position]
    seen = attention(query, key, scaling_of(masked, position), there.to(query.device))[0].cpu()
    mask = there[0].cpu()
    return seen[:, mask][:, :, mask]


def _most_important(units: Units, keep: Tensor, ranking: Tensor) -> list[tuple[int, int]]:
    """Layer positions and KV heads whose kept K units rank highest, by the best of them."""
    order = torch.argsort(ranking.cpu(), descending=True, stable=True)
    chosen = [number for number in order.tolist() if keep[number] and units.has_key[number]]
    heads = dict.fromkeys((int(units.layer[number]), int(units.head[number])) for number in chosen)
    return list(heads)[:PATTERNS]
