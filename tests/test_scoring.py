"""Every one-shot scorer computes its formula, on every kind of architecture."""

from collections.abc import Callable
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, tiny_model
from parts import SCORERS
from tiers import rest_slow
from torch import Tensor, nn

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import MaskedModel, make_units
from mechint.masking.ablation import ZERO, Ablation, MeanAblation
from mechint.masking.weights import input_rows, output_projections
from mechint.methods import (
    ActivationNorm,
    Fisher,
    GramGreedy,
    IntegratedGradients,
    IterativeFisher,
    Magnitude,
    RandomOrder,
    Snip,
    Taylor,
    Think,
)
from mechint.methods.method import ScoringMethod
from mechint.methods.scoring.conductance import through_channels
from mechint.methods.scoring.gram_greedy import convex_slopes, removal_costs
from mechint.methods.scoring.scorer import combine
from mechint.metrics import KL, NLL, Evaluator, Metric
from mechint.metrics.gradients import sequence_gradients

ROWS = torch.randint(3, 97, (5, 13), generator=torch.Generator().manual_seed(0))
BATCH = Batch.of_rows(ROWS)
TOKENS = 5 * 12
PASSES = dict.fromkeys(SCORERS, TOKENS) | {
    "random": 0,
    "magnitude": 0,
    "snip": 2 * 12,  # one batch
    "integrated_gradients": 2 * TOKENS,  # one of them is of the dense model
    "conductance": 3 * TOKENS,
    "iterative_fisher": 3 * 2 * 12,
}
# Those whose scores may be left as they are.
RAW = [name for name, make in SCORERS.items() if hasattr(make(), "normalise")]


@cache
def masked_model(name: str) -> MaskedModel:
    """A tiny model whose weights no test may change."""
    return MaskedModel(tiny_model(name))


def scored(
    method: ScoringMethod,
    masked: MaskedModel,
    batch: Batch = BATCH,
    target: float = 0.6,
    seed: int = 0,
    ablation: Ablation = ZERO,
) -> tuple[Tensor, int]:
    """Scores [U] and the tokens spent."""
    method.prepare(masked, target, torch.Generator().manual_seed(seed))
    tokens = method.score(Evaluator(masked, batch, ablation, at_once=2))
    return method.scores(), tokens


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(
    "architecture", rest_slow(["gpt2", "llama", "gemma2", "deepseek_v3", "gpt_neox"], ("gpt2", "llama"))
)
def test_scorers_are_finite_exact_and_repeatable(name: str, architecture: str) -> None:
    masked, method = masked_model(architecture), SCORERS[name]()
    scores, tokens = scored(method, masked)
    again, _ = scored(SCORERS[name](), masked)
    assert scores.isfinite().all()
    assert scores.unique().numel() > 0.8 * scores.numel()  # some heads of deepseek_v3 share key channels
    assert torch.equal(scores, again)
    assert int(method.hard_mask().sum()) == round(0.4 * method.units.count)
    assert tokens == PASSES[name]
    assert all(parameter.grad is None for parameter in masked.model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"unit": "rope_pair", "scope": "per_head"},
        {"unit": "head", "scope": "per_layer"},
        {"tie_kv": True, "scope": "per_layer"},
    ],
)
@pytest.mark.parametrize("name", SCORERS)
def test_scorers_take_every_unit_and_scope(name: str, options: dict[str, Any]) -> None:
    method = SCORERS[name](**options)
    scores, _ = scored(method, masked_model("llama"), target=0.5)
    kept = method.hard_mask()
    pools = method.pools.of_unit
    assert scores.isfinite().all()
    assert torch.equal(torch.bincount(pools, kept).long(), method.pools.quotas(1.0))
    assert int(kept.sum()) == round(0.5 * method.units.count)


@pytest.mark.parametrize("unit", [{"unit": "rope_pair"}, {"unit": "head"}, {"tie_kv": True}])
@pytest.mark.parametrize("name", [name for name in RAW if name != "gram_greedy"])  # whose costs do not add up
def test_a_units_score_is_the_sum_over_its_channels(name: str, unit: dict[str, Any]) -> None:
    masked = masked_model("llama")
    channels, _ = scored(SCORERS[name](normalise="none"), masked)
    method = SCORERS[name](normalise="none", **unit)
    units, _ = scored(method, masked)
    expected = [channels[method.units.of_channel == u].sum() for u in range(method.units.count)]
    torch.testing.assert_close(units, torch.stack(expected))


def test_a_gate_of_several_channels_has_the_sum_of_their_gradients() -> None:
    masked = masked_model("llama")
    method = Fisher(unit="head")
    scores, _ = scored(method, masked)
    gradients = sequence_gradients(masked, BATCH, torch.ones(masked.space.num_channels), NLL)
    for unit in range(method.units.count):
        expected = gradients[:, method.units.of_channel == unit].sum(1).square().mean()
        assert scores[unit].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.fixture
def crippled() -> MaskedModel:
    """A Llama in whose layer 1 nothing reads V channel 3 of KV head 1, and no query asks for K pair 2 of KV head 0."""
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    for head in (2, 3):
        attention.o_proj.weight[:, head * 8 + 3] = 0
    for head in (0, 1):
        attention.q_proj.weight[[head * 8 + 2, head * 8 + 6]] = 0
    return MaskedModel(model)


@pytest.mark.parametrize(
    "name", [name for name, make in SCORERS.items() if getattr(make(), "reads_outputs", name != "random")]
)
def test_what_nothing_reads_is_worth_nothing(name: str, crippled: MaskedModel) -> None:
    options = {"normalise": "none"} if name in RAW else {}
    method = SCORERS[name](**options)
    scores, _ = scored(method, crippled)
    dead = torch.zeros(crippled.space.num_channels, dtype=torch.bool)
    crippled.space.view(dead, 1, "v")[1, 3] = True
    crippled.space.view(dead, 1, "k")[0, [2, 6]] = True
    if name == "iterative_fisher":  # its scores are stages and ranks
        assert scores[dead].max() < scores[~dead].min()
        return
    assert scores[dead].abs().max() <= 1e-9 * scores.max()
    assert (scores[~dead].abs() > 1e-9 * scores.max()).float().mean() > 0.9


@cache
def states(layer: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value, heads' outputs [B, H, T, C] and W_O [D, H, C] of a layer of the Llama, computed by hand."""
    masked, seen = masked_model("llama"), {}

    def record(position: int, *states: Tensor) -> None:
        seen[position] = [part.double() for part in states]

    with masked.recording(record):
        masked.logits(BATCH)
    query, key, value = seen[layer]
    logits = query @ key.repeat_interleave(2, 1).mT / 8**0.5
    logits = logits.masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
    heads = logits.softmax(-1) @ value.repeat_interleave(2, 1)
    weight = masked.model.model.layers[layer].self_attn.o_proj.weight.double()
    return query, key, value, heads, weight.unflatten(1, (4, 8))


def _by_hand(name: str, kind: str, g: int, c: int) -> Tensor:
    """The formulas of the scorers' docstrings for one channel, in loops."""
    query, key, value, heads, weight = states()
    group = (2 * g, 2 * g + 1)
    k, v = key[:, g, :, c], value[:, g, :, c]  # [B, T]
    if name == "act_norm":
        return ((k if kind == "k" else v) ** 2).mean().sqrt()
    if kind == "k":
        score = torch.zeros((), dtype=torch.double)
        for b in range(len(ROWS)):
            energy = torch.stack([(query[b, h, -3:, c] ** 2).mean() for h in group]).mean()
            spread = k[b].var(correction=0) if name == "think_centered" else (k[b] ** 2).mean()
            score += energy * spread / len(ROWS)
        return score
    columns = sum((weight[:, h, c] ** 2).sum() for h in group)
    if name == "think":
        return (v**2).mean() * columns
    if name == "think_centered":
        return v.var(correction=0) * columns
    outputs = {h: heads[:, h, :, c] for h in group}
    if name == "wanda":
        return torch.stack(
            [(outputs[h] ** 2).mean().sqrt() * weight[:, h, c].abs().sum() for h in group]
        ).sum()
    return torch.stack([outputs[h].var(correction=0) * (weight[:, h, c] ** 2).sum() for h in group]).sum()


@pytest.mark.parametrize("name", ["act_norm", "think", "think_centered", "wanda", "flap"])
def test_activation_formulas(name: str) -> None:
    masked = masked_model("llama")
    options = {} if name == "act_norm" else {"window": 3}
    scores, _ = scored(SCORERS[name](normalise="none", **options), masked)
    for kind in ("k", "v"):
        expected = torch.tensor([[_by_hand(name, kind, g, c) for c in range(8)] for g in range(2)]).double()
        torch.testing.assert_close(masked.space.view(scores, 1, kind), expected, rtol=1e-4, atol=1e-9)


def test_without_a_window_all_queries_count() -> None:
    masked = masked_model("llama")
    whole, _ = scored(Think(window=None), masked)
    assert torch.equal(whole, scored(Think(window=12), masked)[0])
    assert not torch.equal(whole, scored(Think(window=3), masked)[0])


def _key_error(g: int, removed: tuple[int, ...]) -> float:
    """Squared change of all logits of KV head g, keys mean-free, averaged over sequences."""
    query, key, _, _, _ = states()
    change = [
        query[:, h][..., removed] @ (key - key.mean(2, keepdim=True))[:, g][..., removed].mT
        for h in (2 * g, 2 * g + 1)
    ]
    return torch.stack(change).square().sum().item() / len(ROWS)


def _value_error(g: int, removed: tuple[int, ...]) -> float:
    """Squared change of the layer's output, averaged over tokens."""
    _, _, _, heads, weight = states()
    change = sum(heads[:, h][..., removed] @ weight[:, h, removed].T for h in (2 * g, 2 * g + 1))
    return change.square().sum().item() / TOKENS


@pytest.mark.parametrize(("kind", "error"), [("k", _key_error), ("v", _value_error)])
def test_gram_greedy_removes_what_the_set_error_says(
    kind: Any, error: Callable[[int, tuple[int, ...]], float]
) -> None:
    masked = masked_model("llama")
    scores = masked.space.view(scored(GramGreedy(normalise="none"), masked)[0], 1, kind)
    for g in range(2):
        removed: tuple[int, ...] = ()
        while len(removed) < 8:
            rest = [c for c in range(8) if c not in removed]
            removed = (*removed, min(rest, key=lambda c: error(g, tuple(sorted((*removed, c))))))
        assert scores[g].argsort().tolist() == list(removed)
        assert scores[g].sum().item() == pytest.approx(error(g, tuple(range(8))), rel=1e-3)


def test_gram_greedy_removes_whole_units() -> None:
    method = GramGreedy(normalise="none", unit="rope_pair")
    scores, _ = scored(method, masked_model("llama"))
    pairs = (method.units.layer == 1) & (method.units.head == 1) & method.units.has_key
    best = min(((c, c + 4) for c in range(4)), key=lambda pair: _key_error(1, pair))
    assert int(scores[pairs].argmin()) == best[0]
    head = GramGreedy(normalise="none", unit="head")
    whole = scored(head, masked_model("llama"))[0].view(3, 2, 2)[1]  # [kind, head] of layer 1
    for g in range(2):
        assert whole[0, g].item() == pytest.approx(_key_error(g, tuple(range(8))), rel=1e-3)
        assert whole[1, g].item() == pytest.approx(_value_error(g, tuple(range(8))), rel=1e-3)


def test_gram_greedy_counts_from_what_a_removed_channel_becomes() -> None:
    masked = MaskedModel(tiny_model("llama"))
    zero, _ = scored(GramGreedy(normalise="none"), masked)
    fitted = MeanAblation().fit(masked, BATCH, 2)
    mean, _ = scored(GramGreedy(normalise="none"), masked, ablation=fitted)
    assert torch.equal(masked.space.view(zero, 1, "k"), masked.space.view(mean, 1, "k"))
    total = masked.space.view(mean, 1, "v")[0].sum().item()
    _, _, value, heads, weight = states()
    change = sum((heads[:, h] - value[:, 0].mean((0, 1))) @ weight[:, h].T for h in (0, 1))
    assert total == pytest.approx(change.square().sum().item() / TOKENS, rel=1e-3)


def test_units_that_cancel_each_other_cost_little() -> None:
    matrix = torch.tensor([[0.3, 0, 0, 0], [0, 1, -1, 0], [0, -1, 1, 0], [0, 0, 0, 2]], dtype=torch.double)
    costs = removal_costs(matrix[None])[0]
    assert costs.tolist() == pytest.approx([0.1, 0.1, 0.1, 2], rel=1e-3)
    assert costs.argsort().tolist() == [0, 1, 2, 3]


def test_slopes_rise_and_keep_the_sum() -> None:
    steps = torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    slopes = convex_slopes(steps)
    assert (slopes.diff(dim=1) >= -1e-12).all()
    torch.testing.assert_close(slopes.sum(1), steps.sum(1))
    below = steps.cumsum(1) - slopes.cumsum(1)
    assert below.min() >= -1e-12
    curve = F.pad(steps.cumsum(1), (1, 0))  # no chord between two points lies below the convex curve's start
    for a, b in combinations(range(8), 2):
        chord = curve[:, a, None] + (curve[:, b] - curve[:, a])[:, None] * torch.linspace(0, 1, b - a + 1)
        assert (chord - F.pad(slopes.cumsum(1), (1, 0))[:, a : b + 1]).min() >= -1e-6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_output_projection_is_found(name: str) -> None:
    masked = masked_model(name)
    projections = output_projections(masked)
    names = {id(module): path for path, module in masked.model.named_modules()}
    for projection, layer in zip(projections, masked.space.layers, strict=True):
        path = names[id(projection.module)]
        assert path.startswith(f"{layer.name}.")
        assert path.split(".")[-1] in {"c_proj", "o_proj", "out_proj", "dense"}
        heads = torch.randn(2, layer.num_query_heads, layer.value_width)
        bias = getattr(projection.module, "bias", None)
        expected = projection.module(heads.flatten(1)) - (0 if bias is None else bias)
        torch.testing.assert_close(
            torch.einsum("bhc,dhc->bd", heads, projection.weight), expected, rtol=1e-4, atol=1e-4
        )


def test_a_norm_before_the_output_projection_is_refused() -> None:
    model = tiny_model("llama")
    attention = model.model.layers[2].self_attn
    attention.o_proj = nn.Sequential(nn.LayerNorm(32), attention.o_proj)
    masked = MaskedModel(model)
    with pytest.raises(UserError, match=r"layers\.2\.self_attn"):
        scored(Think(), masked)
    scored(ActivationNorm(), masked)


def _rows_of(name: str, layer: int) -> list[Tensor]:
    """Norms of the rows of W_Q, W_K and W_V, read from the architecture's own modules, [heads, C] each."""
    model = masked_model(name).model
    if name == "gpt2":
        parts = model.transformer.h[layer].attn.c_attn.weight.T.split(32)
    elif name == "gpt_neox":
        fused = model.gpt_neox.layers[layer].attention.query_key_value.weight.view(4, 3, 8, 32)
        parts = [fused[:, i].reshape(32, 32) for i in range(3)]
    else:
        attention = model.model.layers[layer].self_attn
        parts = [projection.weight for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
    return [part.norm(dim=1).view(-1, 8) for part in parts]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "qwen3"])  # qwen3 norms queries and keys
def test_norms_of_rows_are_those_of_the_weights(name: str) -> None:
    rows = input_rows(masked_model(name))
    for layer in (0, 2):
        parts = (rows[layer].query, rows[layer].key, rows[layer].value)
        for got, expected in zip(parts, _rows_of(name, layer), strict=True):
            torch.testing.assert_close(got.norms().float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_states_are_the_rows_products_up_to_norm_and_rotation(name: str) -> None:
    """At position 0 nothing is rotated, and a norm changes no sign, so rows show in the states' signs."""
    masked = masked_model(name)
    inputs: dict[nn.Module, Tensor] = {}
    seen: list[tuple[Tensor, ...]] = []
    layers = input_rows(masked)
    handles = [
        linear.register_forward_pre_hook(
            lambda module, given: inputs.update({module: given[0].flatten(0, -2)[0]})
        )
        for layer in layers
        for linear in layer.key.linears
    ]
    with masked.recording(lambda position, *states: seen.append(tuple(part[0, :, 0] for part in states))):
        masked.logits(BATCH)
    for handle in handles:
        handle.remove()
    for layer, states in zip(layers, seen, strict=True):
        for rows, state in zip((layer.query, layer.key, layer.value), states, strict=True):
            expected = torch.zeros(rows.row.shape)
            for number in rows.linear.unique().tolist():
                here, linear = rows.linear == number, rows.linears[number]
                weight = linear.weight if isinstance(linear, nn.Linear) else linear.weight.T
                expected[here] = weight[rows.row[here]] @ inputs[linear]
            expected += rows.bias()
            same = (state * expected > 0).float().mean()
            assert same > 0.99, (name, same)


def test_magnitude_formula() -> None:
    masked = masked_model("llama")
    scores, _ = scored(Magnitude(normalise="none"), masked)
    query, key, value = _rows_of("llama", 1)
    weight = states()[4]
    for g in range(2):
        for c in range(8):
            k = sum(query[h, c] * key[g, c] for h in (2 * g, 2 * g + 1))
            v = value[g, c] * sum((weight[:, h, c] ** 2).sum() for h in (2 * g, 2 * g + 1)) ** 0.5
            assert masked.space.view(scores, 1, "k")[g, c].item() == pytest.approx(float(k), rel=1e-4)
            assert masked.space.view(scores, 1, "v")[g, c].item() == pytest.approx(float(v), rel=1e-4)


def _gradients_one_by_one(
    masked: MaskedModel, gates: Tensor, metric: Metric = NLL, ablation: Ablation = ZERO
) -> Tensor:
    """dL/dm [B, N] by a backward pass for every sequence."""
    rows = []
    for number in range(len(BATCH)):
        one, leaf = BATCH[number : number + 1], gates.clone().requires_grad_()
        loss = metric.mean(masked.logits(one, leaf, ablation), one, masked.logits(one))
        rows.append(torch.autograd.grad(loss, leaf)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("ablation", [ZERO, MeanAblation()], ids=lambda ablation: ablation.name)
@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3"])
def test_gradients_of_a_batch_are_those_of_its_sequences(name: str, ablation: Ablation) -> None:
    masked = MaskedModel(tiny_model(name))
    ablation = ablation.fit(masked, BATCH, 2)
    gates = (torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(0)) > 0.3).float()
    expected = _gradients_one_by_one(masked, gates, ablation=ablation)
    got = sequence_gradients(masked, BATCH, gates, NLL, ablation)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    in_parts = Evaluator(masked, BATCH, ablation, at_once=2).gradients(gates, NLL)
    torch.testing.assert_close(in_parts, expected, rtol=1e-3, atol=1e-5)


def test_gradient_formulas() -> None:
    masked = masked_model("llama")
    gradients = _gradients_one_by_one(masked, torch.ones(masked.space.num_channels)).double()
    expected: list[tuple[ScoringMethod, Tensor]] = [
        (Taylor(), gradients.abs().mean(0)),
        (Taylor(signed=True), gradients.mean(0).abs()),
        (Fisher(), gradients.square().mean(0)),
    ]
    for method, scores in expected:
        torch.testing.assert_close(scored(method, masked)[0], scores, rtol=1e-3, atol=1e-6)
    snip, _ = scored(Snip(), masked)
    batches = [gradients[list(pair)].mean(0).abs() for pair in combinations(range(5), 2)]
    assert snip.sum().item() == pytest.approx(1)
    assert min((snip - batch / batch.sum()).abs().max().item() for batch in batches) < 1e-5


@pytest.mark.parametrize("objective", ["kl", "nll"])
def test_integrated_gradients_formula(objective: Any) -> None:
    masked = masked_model("llama")
    ones = torch.ones(masked.space.num_channels)
    metric = KL if objective == "kl" else NLL
    paths = sum(_gradients_one_by_one(masked, ones * s / 3, metric) for s in (1, 2, 3)) / 3
    expected = paths.mean(0)
    got, _ = scored(IntegratedGradients(path_steps=3, path_objective=objective, signed=True), masked)
    torch.testing.assert_close(got.float(), -expected, rtol=1e-3, atol=1e-5)
    absolute, _ = scored(IntegratedGradients(path_steps=3, path_objective=objective), masked)
    torch.testing.assert_close(absolute, got.abs())
    spread, _ = scored(IntegratedGradients(path_steps=3, path_objective=objective, across="rms"), masked)
    torch.testing.assert_close(spread.float(), paths.square().mean(0).sqrt(), rtol=1e-3, atol=1e-5)


def test_integrated_gradients_add_up_to_what_the_attention_is_worth() -> None:
    masked, batch = masked_model("llama"), BATCH[:2]
    losses = []
    for value in (0.0, 1.0):
        logits = masked.logits(batch, torch.full((masked.space.num_channels,), value))
        losses.append(NLL.mean(logits, batch, None).item())
    scores, _ = scored(IntegratedGradients(path_steps=40, path_objective="nll", signed=True), masked, batch)
    assert scores.sum().item() == pytest.approx(losses[0] - losses[1], rel=0.1, abs=0.05)


def test_integrated_gradients_of_a_part_lead_to_that_part() -> None:
    masked, batch = masked_model("llama"), BATCH[:2]
    allowed = torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(3)) > 0.5
    losses = [
        NLL.mean(masked.logits(batch, value * allowed.float()), batch, None).item() for value in (0.0, 1.0)
    ]
    method = IntegratedGradients(path_steps=100, path_objective="nll", signed=True)
    method.prepare(masked, 0.6, torch.Generator().manual_seed(0), allowed)
    method.score(Evaluator(masked, batch, ZERO, at_once=2))
    found = method.scores()[allowed].sum().item()
    assert found == pytest.approx(losses[0] - losses[1], abs=2e-3)


def test_iterative_fisher_removes_stage_by_stage() -> None:
    masked = masked_model("llama")
    method = IterativeFisher(stages=3, sequences_per_stage=5)
    scores, tokens = scored(method, masked, target=0.75)
    kept = torch.ones(96)
    removed_at = torch.full((96,), 4)
    for stage, share in enumerate((1 - (2 / 3) ** 3, 1 - (1 / 3) ** 3, 1.0), start=1):
        fisher = _gradients_one_by_one(masked, kept).square().mean(0).masked_fill(kept == 0, torch.inf)
        count = int(kept.sum()) - round(96 * (1 - 0.75 * share))
        removed_at[fisher.argsort()[:count]] = stage
        kept[removed_at == stage] = 0
    assert torch.equal(scores.floor().long(), removed_at)
    assert torch.equal(method.hard_mask(), kept.bool())
    assert tokens == 3 * TOKENS


def test_one_stage_is_fisher() -> None:
    masked = masked_model("gpt2")
    iterative = IterativeFisher(stages=1, sequences_per_stage=5)
    order = scored(iterative, masked)[0].argsort()
    assert torch.equal(order, scored(Fisher(), masked)[0].argsort())


def test_pools_keep_their_exact_counts_through_stages() -> None:
    method = IterativeFisher(
        stages=7, sequences_per_stage=2, scope="per_head", key_sparsity=0.37, value_sparsity=0.61
    )
    scored(method, masked_model("llama"), target=0.49)
    kept = torch.bincount(method.pools.of_unit, method.hard_mask()).long()
    assert torch.equal(kept, method.pools.quotas(1.0))
    assert (method.scores()[method.hard_mask()] >= 8).all()
    assert (method.scores()[~method.hard_mask()] < 8).all()


def test_normalising_makes_layers_and_kinds_alike() -> None:
    units = make_units(masked_model("llama"))
    by_kind = torch.rand(2, 96, dtype=torch.double, generator=torch.Generator().manual_seed(0)) * 9
    by_kind[0, units.has_value], by_kind[1, units.has_key] = 0, 0
    by_kind[:, units.layer == 2] = 0
    scores = combine(units, by_kind, "zscore")
    for has_kind in (units.has_key, units.has_value):
        for layer in (0, 1):
            here = has_kind & (units.layer == layer)
            assert scores[here].mean().item() == pytest.approx(0, abs=1e-9)
            assert scores[here].std(correction=0).item() == pytest.approx(1)
            assert torch.equal(scores[here].argsort(), by_kind.sum(0)[here].argsort())
    assert not scores[units.layer == 2].any()
    assert torch.equal(combine(units, by_kind, "none"), by_kind.sum(0))


def test_random_follows_the_seed() -> None:
    masked = masked_model("llama")
    first, other = (scored(RandomOrder(), masked, seed=seed)[0] for seed in (0, 1))
    assert torch.equal(first, scored(RandomOrder(), masked, seed=0)[0])
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: Think(normalise="rank"),
        lambda: Think(window=0),
        lambda: IntegratedGradients(path_steps=1),
        lambda: IntegratedGradients(path_objective="loss"),
        lambda: IntegratedGradients(across="median"),
        lambda: IntegratedGradients(across="rms", signed=True),
        lambda: IterativeFisher(stages=0),
        lambda: Fisher(key_sparsity=2.0),
    ],
)
def test_impossible_settings_are_one_line(attempt: Callable[[], object]) -> None:
    with pytest.raises(UserError) as error:
        attempt()
    assert "\n" not in str(error.value)


def keeping(seen: dict[tuple[int, str], Tensor], position: int) -> Callable[..., Tensor]:
    """A hook on GPT-2's projection of queries, keys and values that keeps keys and values with their gradients."""

    def take(_: object, __: object, output: Tensor) -> Tensor:
        query, key, value = output.split(32, dim=-1)
        states = {"k": key.clone(), "v": value.clone()}
        for kind, state in states.items():
            state.retain_grad()
            seen[position, kind] = state
        return torch.cat([query, *states.values()], -1)

    return take


def test_conductance_is_the_change_of_the_loss_along_the_path() -> None:
    masked = masked_model("gpt2")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 97, (4, 6), generator=generator)
    paired = tokens.clone()
    paired[:, 2] = (paired[:, 2] + 5).clamp_max(96)
    answers = torch.randint(3, 97, (4, 6), generator=generator)
    counted = torch.zeros(4, 6, dtype=torch.bool)
    counted[:, -1] = True
    batch = Batch(tokens, answers, counted, paired=paired)
    total = through_channels(masked, batch, steps=2)
    assert total.shape == (masked.space.num_channels,)
    embed = masked.model.get_input_embeddings()
    steps: list[dict[tuple[int, str], Tensor]] = []
    for share in (0.0, 0.5, 1.0):
        inputs = (embed(paired) + share * (embed(tokens) - embed(paired))).requires_grad_()  # type: ignore[operator]
        seen: dict[tuple[int, str], Tensor] = {}
        hooked = []
        for position, layer in enumerate(masked.space.layers):
            module = masked.model.get_submodule(layer.name).c_attn
            hooked.append(module.register_forward_hook(keeping(seen, position)))  # type: ignore[operator]
        logits = masked.model(inputs_embeds=inputs).logits
        F.cross_entropy(logits[:, -1], answers[:, -1], reduction="sum").backward()
        for handle in hooked:
            handle.remove()
        steps.append(seen)
    expected = torch.zeros_like(total)
    for position, kind in masked.space.slices:
        flow = torch.zeros(32)
        for before, after in pairwise(steps):
            state = after[position, kind]
            assert state.grad is not None
            flow += (state.grad * (state - before[position, kind])).sum((0, 1)).detach()
        masked.space.view(expected, position, kind).copy_(flow.view(4, 8))
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-5)
