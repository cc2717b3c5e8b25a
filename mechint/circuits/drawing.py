"""Which head reads what another one writes, and how heads attend with and without the mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from mechint.circuits.meaning import readable
from mechint.circuits.norms import LinearPart, norms_before
from mechint.circuits.patterns import Head, attention_of
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import MaskedModel, Units
from mechint.masking.ablation import Ablation
from mechint.masking.weights import InputRows, LayerRows, input_rows, output_projections
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
    gates = kept.float().to(masked.device)
    prompts = batch[:EXAMPLES]
    try:
        heads = _most_important(units, keep, ranking)
        found.examples = _examples(masked, prompts, heads, gates, ablation, tokenizer)
    except UserError as error:
        found.notes = [*found.notes, f"attention patterns are not drawn: {error}"]
    return found


def read_edges(masked: MaskedModel, kept: Tensor) -> list[ReadEdge]:
    """All edges between heads with kept channels, bool [N]. The norm before a reader is folded into its weights.

    Raises UserError where the weights cannot be read.
    """
    space = masked.space
    written = [one.weight.float().cpu() for one in output_projections(masked)]  # [D, H, C]
    rows = input_rows(masked)
    norms = norms_before(
        masked, list({one for layer in rows for part in _parts(layer) for one in part.linears})
    )
    writers: dict[tuple[int, int], Tensor] = {}
    readers: dict[tuple[int, int, Reader], Tensor] = {}
    for position, layer in enumerate(space.layers):
        keys, values = (space.view(kept, position, kind) for kind in ("k", "v"))
        groups = layer.num_kv_heads
        query, key, value = (_weight(part, norms) for part in _parts(rows[position]))
        read = {"k": key, "v": value, "q": query.unflatten(0, (groups, -1))}  # q: [G, R, C, D]
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


def _parts(rows: LayerRows) -> tuple[InputRows, InputRows, InputRows]:
    return rows.query, rows.key, rows.value


def _weight(rows: InputRows, norms: Mapping[nn.Module, LinearPart]) -> Tensor:
    """The rows [heads, C, D] as they read the residual stream, through the norms before their linear layers."""
    weight = rows.weight().cpu()
    for number, module in enumerate(rows.linears):
        if module in norms and bool((chosen := (rows.linear == number).cpu()).any()):
            weight[chosen] = norms[module].read_before(weight[chosen])
    return weight


def _examples(
    masked: MaskedModel,
    prompts: Batch,
    kv_heads: list[Head],
    gates: Tensor,
    ablation: Ablation,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[Example]:
    """How of each KV head the query head attends that is surest of where the first prompt's last token looks."""
    there = _there(prompts).cpu()
    layers = masked.space.layers
    groups = []
    for position, head in kv_heads:
        repeats = layers[position].num_query_heads // layers[position].num_kv_heads
        groups.append([(position, one) for one in range(head * repeats, (head + 1) * repeats)])
    dense = attention_of(masked, prompts, [one for group in groups for one in group])
    last = int(there[0].nonzero()[-1])
    heads = [max(group, key=lambda one: float(dense[one][0, last].max())) for group in groups]
    under = attention_of(masked, prompts, heads, gates, ablation)
    found = []
    for number, own in enumerate(there):
        ids = prompts.tokens[number].cpu()[own].tolist()
        found.append(
            Example(
                tokens=[
                    str(one) if tokenizer is None else readable([one], tokenizer) for one in ids[-TOKENS:]
                ],
                patterns=[
                    Pattern(
                        layer=layers[head[0]].index,
                        query_head=head[1],
                        dense=_rounded(dense[head][number][own][:, own]),
                        masked=_rounded(under[head][number][own][:, own]),
                    )
                    for head in heads
                ],
                left_out=max(0, len(ids) - TOKENS),
            )
        )
    return found


def _there(prompt: Batch) -> Tensor:
    """Which tokens are no padding, bool [1, T]."""
    there = prompt.attention_mask
    return torch.ones_like(prompt.tokens, dtype=torch.bool) if there is None else there


def _rounded(pattern: Tensor) -> list[list[float]]:
    """Attention [T, T] among the last tokens."""
    return [[round(weight, DIGITS) for weight in row] for row in pattern[-TOKENS:, -TOKENS:].tolist()]


def _most_important(units: Units, keep: Tensor, ranking: Tensor) -> list[Head]:
    """Layer positions and KV heads whose kept units, K or V, rank highest, by the best of them."""
    order = torch.argsort(ranking.cpu(), descending=True, stable=True)
    chosen = [number for number in order.tolist() if keep[number]]
    heads = dict.fromkeys((int(units.layer[number]), int(units.head[number])) for number in chosen)
    return list(heads)[:PATTERNS]
