"""What a basis other than the channels has to show before its directions are believed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from mechint.analysis.null import kl_recovered
from mechint.analysis.preparation import Inputs, Prepared
from mechint.data import Dataset, PythonDocs, TextFiles
from mechint.data.dataset import RunningText
from mechint.data.leakage import measure_leakage
from mechint.data.token_data import TokenData
from mechint.errors import UserError
from mechint.masking import MaskedModel
from mechint.masking.basis import Basis, Maps, Where
from mechint.masking.layers import some_tokens
from mechint.masking.sites import in_basis
from mechint.masking.space import KINDS, ChannelSpace, Kind
from mechint.masking.weights import attention_modules, linear_layers
from mechint.metrics.evaluation import Measured, faithfulness
from mechint.results.result import (
    Carried,
    CarriedHeads,
    HeadSubspaces,
    Metrics,
    SubspaceAgreement,
    Transfer,
)

# What `basis.second_text` calls the text that is on every machine.
BUNDLED = "python_docs"

# A second text is only measured on; this share of it would be enough were it short.
SECOND_FRACTION = 0.5

# Singular values below this share of the largest are rounding of float32.
ROUNDING = 1e-5

# A direction counts as carried where no less than 1 - TOLERANCE of its norm lies in the span.
TOLERANCE = 1e-3

# Matched random masks whose subspaces are compared, for each pair of seeds.
DRAWS = 20

# By layer position and kind, for each KV head.
Spans = dict[tuple[int, Kind], list[Tensor]]

MISSING_NULL = (
    "the same learning on models with permuted weights: basis.proofs=true, which takes as long as {} more runs of this "
    "kind"
)
MISSING_NULL_OF_SEEDS = (
    "the same learning on models with permuted weights: stability.null_control=true, which takes as long as {} more "
    "seeds"
)
MISSING_NESTED = "the same learning on models with permuted weights: ask for it in a run for one target"
MISSING_TRANSFER = "transfer to a second text: name one with basis.second_text"
MISSING_SUBSPACES = "whether seeds keep the same subspaces: seeds=4 compares them"


# --- transfer to a second text


def load_second_text(inputs: Inputs, prepared: Prepared, wanted: str) -> TokenData:
    """The tokens of a second text: `python_docs`, or the text files that a path means.

    Raises UserError where it cannot be read, or is the run's own evaluation text.
    """
    own, checkpoint = prepared.data.evaluation, prepared.checkpoint
    if not isinstance(inputs.dataset, RunningText):
        raise UserError("basis.second_text is for runs on text; a task has paraphrases instead")
    settings: dict[str, Any] = {
        "sequence_length": own.length,
        "calibration_tokens": own.length,  # of no use here
        "evaluation_tokens": max(own.length, inputs.dataset.evaluation_tokens),
        "bos": inputs.dataset.bos,
        "allow_overlap": True,
    }
    dataset: Dataset = (
        PythonDocs(**settings)
        if wanted == BUNDLED
        else TextFiles(path=wanted, evaluation_fraction=SECOND_FRACTION, **settings)
    )
    try:
        data = dataset.load(
            checkpoint.tokenizer, checkpoint.name, checkpoint.vocab_size, checkpoint.max_positions, 0
        )
    except UserError as error:
        raise UserError(f"basis.second_text={wanted} cannot be used: {error}") from error
    if data.evaluation_digest == prepared.data.evaluation_digest:
        raise UserError(
            f"basis.second_text={wanted} is the text that the run is measured on anyway; give another one"
        )
    return data


def transfer_of(measured: Measured, second: TokenData, learned_on: TokenData) -> Transfer:
    """What a mask does on a second text; learned_on: the data of its run."""
    dense, empty, masked = (measured.metrics[name] for name in ("dense", "empty", "masked"))
    rows = [batch.rows().cpu().numpy() for batch in (learned_on.calibration, second.evaluation)]
    return Transfer(
        text=second.name,
        tokens=second.evaluation_tokens,
        sequences=len(second.evaluation),
        evaluation_digest=second.evaluation_digest,
        shared_ngrams=measure_leakage(rows[0], rows[1]).shared_ngrams,
        metrics=Metrics.model_validate(measured.metrics),
        faithfulness=faithfulness(dense["loss"], empty["loss"], masked["loss"]),
        faithfulness_se=measured.faithfulness_se,
        kl_recovered=kl_recovered(masked["kl"], empty["kl"]),
        kl_recovered_se=measured.kl_recovered_se,
    )


# --- what the weights carry


@torch.no_grad()
def spans_of_weights(masked: MaskedModel, keys: Where) -> Spans:
    """Orthonormal bases, double [C, rank], of the keys and values that each KV head's weights can make.

    Found by watching what becomes of random inputs to the layers' projections, so that biases, norms and, for keys
    after the rotation, the rotation are part of it, whatever the architecture.
    """
    space, modules = masked.space, attention_modules(masked)
    widest = max(layer.width(kind) for layer in space.layers for kind in KINDS)
    length = min(32, getattr(masked.model.config.get_text_config(), "max_position_embeddings", None) or 32)
    tokens = some_tokens(masked.model, -(-2 * widest // length) + 1, length)
    generator = torch.Generator().manual_seed(0)
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def noise(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        first = arguments[0]
        return torch.randn(first.shape, generator=generator).to(first), *arguments[1:]

    def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        seen[position] = key.detach(), value.detach()

    with ExitStack() as stack:
        for module in modules:
            for linear in linear_layers(module):
                stack.enter_context(linear.register_forward_pre_hook(noise))
        stack.enter_context(in_basis(masked, _unchanged(space, keys, masked.device)).recording(record))
        masked.model.base_model(input_ids=tokens, use_cache=False)
    return {
        (position, kind): [_span(head) for head in seen[position][number].double().cpu().transpose(0, 1)]
        for position in range(len(space.layers))
        for number, kind in enumerate(KINDS)
    }


def _unchanged(space: ChannelSpace, keys: Where, device: torch.device) -> Basis:
    """The channels themselves, seen where the keys of a basis are."""
    maps = []
    for position, kind in space.slices:
        layer = space.layers[position]
        same = torch.eye(layer.width(kind), device=device).expand(layer.num_kv_heads, -1, -1)
        maps.append(Maps(same, same))
    return Basis.fixed(("channels", "channels"), keys, maps)


def _span(states: Tensor) -> Tensor:
    """An orthonormal basis [C, rank] of states [B, T, C]: of their differences, and of their mean."""
    flat = states.flatten(0, -2)
    mean = flat.mean(0)
    _, values, right = torch.linalg.svd(flat - mean, full_matrices=False)
    span = right[values > ROUNDING * values[0]].mT if float(values[0]) > 0 else right[:0].mT
    rest = mean - span @ (span.mT @ mean)
    if float(rest.norm()) > ROUNDING * max(float(mean.norm()), float(values[0])):
        span = torch.cat([span, (rest / rest.norm())[:, None]], 1)
    return span


def carried(masked: MaskedModel, keep: Tensor) -> Carried:
    """How much of every kept direction's norm lies in what the weights can make; keep: bool [N]."""
    space, basis = masked.space, masked.basis
    assert basis is not None, "directions are those of a basis"
    spans, heads = spans_of_weights(masked, basis.keys), []
    shares: list[Tensor] = []
    for (position, kind), maps in zip(space.slices, basis.maps, strict=True):
        layer = space.layers[position]
        kept = space.view(keep.cpu(), position, kind)  # [G, C]
        own = [
            share_inside(span, write[chosen])
            for span, write, chosen in zip(
                spans[position, kind], maps.write.detach().double().cpu(), kept, strict=True
            )
        ]
        shares += own
        heads.append(
            CarriedHeads(
                layer=layer.index,
                name=layer.name,
                kind=kind,
                width=layer.width(kind),
                rank=[span.shape[1] for span in spans[position, kind]],
                kept=[len(share) for share in own],
                lowest=[float(share.min()) if len(share) else None for share in own],
                mean=[float(share.mean()) if len(share) else None for share in own],
            )
        )
    everything = torch.cat(shares)
    ranks = [(rank, part.width) for part in heads for rank in part.rank]
    return Carried(
        lowest=float(everything.min()) if len(everything) else None,
        mean=float(everything.mean()) if len(everything) else None,
        directions=len(everything),
        outside=int((everything < 1 - TOLERANCE).sum()),
        tolerance=TOLERANCE,
        deficient=sum(rank < width for rank, width in ranks),
        of_heads=len(ranks),
        heads=heads,
    )


def share_inside(span: Tensor, directions: Tensor) -> Tensor:
    """Share of the norm of directions [n, C] inside the span of orthonormal columns [C, rank], [n]."""
    return (directions @ span).norm(dim=1) / directions.norm(dim=1).clamp_min(1e-300)


# --- subspaces of several seeds


def subspace_agreement(
    space: ChannelSpace,
    bases: Sequence[Basis],
    keeps: Sequence[Tensor],
    generator: torch.Generator,
    draws: int = DRAWS,
) -> SubspaceAgreement:
    """How far the subspaces agree that seeds keep of every head's keys and values; keeps: bool [N] of each seed."""
    totals: dict[str, Tensor] = {kind: torch.zeros(4, dtype=torch.double) for kind in ("k", "v")}
    parts = []
    for number, (position, kind) in enumerate(space.slices):
        layer = space.layers[position]
        writes = [basis.maps[number].write.detach().double().cpu() for basis in bases]  # each [G, C, C]
        kept = [space.view(keep.cpu(), position, kind) for keep in keeps]  # each [G, C]
        part = HeadSubspaces(layer=layer.index, name=layer.name, kind=kind)
        columns: dict[str, list[float | None]] = {"cosine2": [], "random": [], "chance": []}
        for head in range(layer.num_kv_heads):
            rows = [write[head] for write in writes]
            chosen = [keep[head] for keep in kept]
            sums = _angles(rows, chosen, generator, draws)
            totals[kind] += sums
            for name, value in _means(sums).items():
                columns[name].append(value)
            part.kept = [*part.kept, sum(int(one.sum()) for one in chosen) / len(chosen)]
        part.cosine2, part.random, part.chance = columns.values()
        parts.append(part)
    both = _means(totals["k"] + totals["v"])
    return SubspaceAgreement(
        pairs=len(bases) * (len(bases) - 1) // 2,
        draws=draws,
        **both,
        k=_means(totals["k"]),
        v=_means(totals["v"]),
        heads=parts,
    )


def _angles(
    rows: Sequence[Tensor], chosen: Sequence[Tensor], generator: torch.Generator, draws: int
) -> Tensor:
    """Sums over pairs of seeds for one head: number of angles; their squared cosines; the same expected of random
    subspaces; and of matched random masks, a mean over draws.

    rows: [C, C] of each seed, the directions. chosen: bool [C] of each seed.
    """
    width = len(chosen[0])
    counts = [int(one.sum()) for one in chosen]
    own = [_projector(directions, keep) for directions, keep in zip(rows, chosen, strict=True)]
    pairs = [(a, b) for a, b in combinations(range(len(counts)), 2) if counts[a] and counts[b]]
    angles = sum(min(counts[a], counts[b]) for a, b in pairs)
    cosines = sum(float((own[a] * own[b]).sum()) for a, b in pairs)
    random = sum(counts[a] * counts[b] / width for a, b in pairs)
    chance = 0.0
    for _ in range(draws if pairs else 0):
        drawn = [
            _projector(directions, torch.argsort(torch.rand(width, generator=generator)) < count)
            for directions, count in zip(rows, counts, strict=True)
        ]
        chance += sum(float((drawn[a] * drawn[b]).sum()) for a, b in pairs) / draws
    return torch.tensor([angles, cosines, random, chance], dtype=torch.double)


def _projector(directions: Tensor, keep: Tensor) -> Tensor:
    """The orthogonal projection [C, C] onto the span of the kept of the directions, rows [C, C]."""
    span, _ = torch.linalg.qr(directions[keep].mT)
    return span @ span.mT


def _means(sums: Tensor) -> dict[str, float | None]:
    angles, *rest = sums.tolist()
    names = ("cosine2", "random", "chance")
    return {name: value / angles if angles else None for name, value in zip(names, rest, strict=True)}
