"""What single units do, told from states and weights."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, tiny_model
from families import family_model
from tiers import rest_slow
from transformers import PreTrainedModel

from mechint.circuits.drawing import draw, read_edges
from mechint.circuits.meaning import UNTOLD_BIASES, UNTOLD_TERMS, explain, readable, score_terms, states_on
from mechint.circuits.norms import final_norm, linear_part
from mechint.circuits.patterns import (
    attention_of,
    scaling_that_explains,
    softmax_attention,
    turned_directions,
)
from mechint.data.batch import Batch
from mechint.data.byte_tokenizer import byte_tokenizer
from mechint.masking import MaskedModel, MeanAblation, make_units
from mechint.masking.basis import Basis
from mechint.masking.sites import in_basis
from mechint.masking.weights import input_rows, output_projections
from mechint.methods.bases import PrincipalBasis
from mechint.metrics.evaluation import Evaluator
from mechint.results.units import UnitMeanings

ROWS = torch.randint(65, 91, (4, 12), generator=torch.Generator().manual_seed(0))

# Attention that is no softmax of queries and keys alone on 12 tokens: windows of 8, caps, biases of positions.
OTHERWISE = {"mistral", "gemma2", "gemma3_text", "phi3", "gpt_oss", "bloom", "mpt", "gpt_neo"}


def model_of(name: str) -> PreTrainedModel:
    return tiny_model(name) if name in ARCHITECTURES else family_model(name)


def all_heads(masked: MaskedModel) -> list[tuple[int, int]]:
    return [(i, head) for i, layer in enumerate(masked.space.layers) for head in range(layer.num_query_heads)]


def principal(masked: MaskedModel) -> MaskedModel:
    ablation = MeanAblation().fit(masked, Batch(ROWS), 4)
    return PrincipalBasis().fit(Evaluator(masked, Batch(ROWS), ablation, 4), seed=0)


class Recorder:
    """Keeps queries and keys in channels."""

    def before_rotation(self, states: str, values: torch.Tensor) -> torch.Tensor:
        return values

    def __call__(self, module: object, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple:
        self.query, self.key = query, key
        return key, value


@pytest.mark.parametrize(
    "name", rest_slow([*ARCHITECTURES, "bloom", "mpt", "gpt_neo", "gptj"], ["llama", "gpt_oss", "bloom"])
)
def test_attention_is_the_models_own_and_terms_are_told_only_where_they_explain_it(name: str) -> None:
    plain = model_of(name)
    plain.set_attn_implementation("eager")
    tokens = ROWS % plain.config.vocab_size
    expected = plain(tokens, output_attentions=True).attentions
    masked = MaskedModel(model_of(name))
    own = attention_of(masked, Batch(tokens), all_heads(masked))
    for (position, head), seen in own.items():
        layer = masked.space.layers[position].index
        torch.testing.assert_close(seen, expected[layer][:, head], rtol=1e-4, atol=1e-5)
    units = make_units(masked)
    keys = units.space.labels()["kind"] == 0
    chosen = [int(number) for number in torch.arange(units.count)[keys][::7]]
    found = explain(masked, Batch(tokens), units, chosen, None)
    if name not in OTHERWISE:
        assert all(unit.matches for unit in found.units)
        assert not found.notes
    silent = {unit.layer for unit in found.units if not unit.matches}
    assert bool(silent) == (name in OTHERWISE)
    assert any(note.startswith(UNTOLD_TERMS) for note in found.notes) == bool(silent)
    for unit in found.units:
        for match in unit.matches:
            assert 0 <= match.attention <= 1


def test_a_model_that_does_not_scale_its_scores_is_known_by_its_attention() -> None:
    masked = MaskedModel(model_of("gpt_neo"))
    tokens, there = ROWS % 97, torch.ones_like(ROWS, dtype=torch.bool)
    own, states = attention_of(masked, Batch(tokens), [(0, 1)])[0, 1], states_on(masked, Batch(tokens))
    scaling = scaling_that_explains(masked, 0, own, states.query[0][:, 1], states.key[0][:, 1], there)
    assert scaling == pytest.approx(1, rel=1e-3)


def test_attention_of_prompts_longer_than_values_are_wide_and_padded_on_the_left() -> None:
    plain, masked = tiny_model("llama"), MaskedModel(tiny_model("llama"))
    plain.set_attn_implementation("eager")
    tokens = torch.randint(3, 97, (2, 29), generator=torch.Generator().manual_seed(1))
    there = torch.ones_like(tokens, dtype=torch.bool)
    there[1, :9] = False
    own = attention_of(masked, Batch(tokens, attention_mask=there), all_heads(masked))
    short = plain(tokens[1:, 9:], output_attentions=True).attentions
    whole = plain(tokens[:1], output_attentions=True).attentions
    for (position, head), seen in own.items():
        torch.testing.assert_close(seen[:1], whole[position][:, head], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen[1:, 9:, 9:], short[position][:, head], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "basis", "gated"),
    rest_slow(
        product(["gpt2", "llama", "qwen2", "qwen3"], ["channels", "principal", "after_rope"], [False, True]),
        [("llama", "channels", False), ("llama", "principal", True)],
    ),
)
def test_the_terms_of_a_heads_score_add_up_to_what_the_model_attends_by(
    name: str, basis: str, gated: bool
) -> None:
    """In any coordinates, dense and under a mask."""
    masked, batch = MaskedModel(tiny_model(name)), Batch(ROWS)
    if basis != "channels":
        masked = principal(masked)
    if basis == "after_rope":
        assert masked.basis is not None
        masked = in_basis(masked, Basis(masked.basis.names, "after_rope", masked.basis.maps_of))
    keep = torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(1)) > 0.5
    gates = keep.float() if gated else None
    states, recorders = states_on(masked, batch, gates), [Recorder() for _ in masked.space.layers]
    with masked.after_gates(recorders, gates):
        masked.hidden(batch)
    own = attention_of(masked, batch, all_heads(masked), gates)
    there = torch.ones_like(ROWS, dtype=torch.bool)
    for position, layer in enumerate(masked.space.layers):
        for head in range(layer.num_query_heads):
            group = head // (layer.num_query_heads // layer.num_kv_heads)
            query, key = recorders[position].query[:, head], recorders[position].key[:, group]
            scaling = scaling_that_explains(masked, position, own[position, head], query, key, there)
            assert scaling is not None
            turned: list[torch.Tensor | None] = [None] * layer.key_width
            if masked.basis is not None and masked.basis.keys == "before_rope":
                about = [(position, group, number) for number in range(layer.key_width)]
                turned = [*turned_directions(masked, batch, about)]
            terms = sum(
                score_terms(
                    states.query[position][:, head, :, number] if direction is None else query,
                    states.key[position][:, group, :, number],
                    scaling,
                    direction,
                )
                for number, direction in enumerate(turned)
            )
            score = query @ key.mT * scaling
            torch.testing.assert_close(terms, score, rtol=1e-5, atol=1e-5 * float(score.abs().max()))
            plain = softmax_attention(query, key, scaling)
            torch.testing.assert_close(plain, own[position, head], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_in_the_principal_basis_patterns_are_drawn_and_pairs_are_told(name: str) -> None:
    """And attention under the mask is what that of the masked model is, whatever the basis."""
    masked = principal(MaskedModel(tiny_model(name, vocab_size=256)))
    assert masked.basis is not None
    assert masked.basis.keys == ("after_rope" if name == "gpt2" else "before_rope")
    units = make_units(masked)
    generator = torch.Generator().manual_seed(2)
    ranking = torch.rand(units.count, generator=generator)
    keep = ranking > 0.5
    drawing = draw(
        masked, Batch(ROWS), units, keep, ranking, MeanAblation().fit(masked, Batch(ROWS), 4), None
    )
    assert not drawing.notes
    assert drawing.edges
    dense, view = attention_of(masked.in_channels(), Batch(ROWS), all_heads(masked)), drawing.examples[1]
    assert len(drawing.examples) == 3
    for pattern in view.patterns:
        expected = dense[pattern.layer, pattern.query_head][1]
        torch.testing.assert_close(torch.tensor(pattern.dense), expected, rtol=0, atol=1e-4)
        rows = torch.tensor(pattern.masked).sum(-1)
        torch.testing.assert_close(rows, torch.ones(12), rtol=0, atol=1e-3)
    assert any(pattern.dense != pattern.masked for pattern in view.patterns)
    keys = [number for number in range(units.count) if units.has_key[number] and keep[number]]
    found = explain(masked, Batch(ROWS), units, keys[:12], byte_tokenizer())
    assert not found.notes
    assert all(unit.matches for unit in found.units)


def test_heads_that_keep_values_alone_have_patterns_too() -> None:
    masked = MaskedModel(tiny_model("llama"))
    units = make_units(masked)
    ranking = torch.rand(units.count, generator=torch.Generator().manual_seed(0))
    keep = units.has_value & (units.layer == 1) & (units.head == 1)
    drawing = draw(
        masked, Batch(ROWS), units, keep, ranking, MeanAblation().fit(masked, Batch(ROWS), 4), None
    )
    (pattern,) = drawing.examples[0].patterns
    assert pattern.layer == 1
    assert pattern.query_head in (2, 3)


def test_units_of_keys_and_values_are_told_as_both() -> None:
    masked = MaskedModel(tiny_model("llama", vocab_size=256))
    units = make_units(masked, tie_kv=True)
    found = explain(masked, Batch(ROWS), units, [9], byte_tokenizer()).units
    assert [(unit.layer, unit.kind, unit.head, unit.channel) for unit in found] == [
        (0, "k", 1, 1),
        (0, "v", 1, 1),
    ]
    assert found[0].matches
    assert found[1].promotes


@pytest.mark.parametrize("basis", ["channels", "principal"])
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_the_share_of_a_key_bias_is_that_of_its_square_before_the_rotation(name: str, basis: str) -> None:
    """Biases that cancel the mean of what the input adds, every second one here, have a share of at most 1 as well."""
    model = tiny_model(name, vocab_size=256)
    masked = MaskedModel(model)
    rows = input_rows(masked)[0].key
    linear = rows.linears[int(rows.linear[0, 0])]
    seen: list[torch.Tensor] = []
    hook = linear.register_forward_hook(lambda module, arguments, output: seen.append(output))
    masked.hidden(Batch(ROWS))
    hook.remove()
    bias: Any = linear.bias
    bias.data = 3 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(0))
    bias.data[::2] = -seen[0].mean((0, 1))[::2]
    if basis == "principal":
        masked = principal(masked)
    units = make_units(masked)
    found = explain(masked, Batch(ROWS), units, range(8), byte_tokenizer())  # all keys of the first head
    assert not found.notes
    shares = [unit.bias_share for unit in found.units]
    assert all(share is not None and 0 < share <= 1 for share in shares)
    own, inputs = bias[rows.row[0]], seen[0][..., rows.row[0]]
    if masked.basis is not None:
        read = masked.basis.of(masked.space, 0, "k").read[0]
        own, inputs = own @ read, inputs @ read
    expected = own.square() / (own.square() + inputs.square().mean((0, 1)))
    torch.testing.assert_close(torch.tensor(shares), expected, rtol=1e-3, atol=1e-6)


def test_no_share_of_a_key_bias_is_told_where_it_is_no_part_of_the_key() -> None:
    """Where keys are normed after it, and for directions after the rotation."""
    normed = MaskedModel(tiny_model("qwen3", attention_bias=True))
    rotated = MaskedModel(tiny_model("qwen2"))
    for masked in (normed, rotated):
        for layer in masked.model.model.layers:
            layer.self_attn.k_proj.bias.data.fill_(1.0)
    basis = principal(rotated).basis
    assert basis is not None
    for masked in (normed, in_basis(rotated, Basis(basis.names, "after_rope", basis.maps_of))):
        found = explain(masked, Batch(ROWS), make_units(masked), [0, 1], None)
        assert [unit.bias_share for unit in found.units] == [None, None]
        assert found.notes == [f"{UNTOLD_BIASES} (layer 0)"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_linear_part_of_a_norm_is_what_it_does_up_to_its_scale(name: str) -> None:
    model = tiny_model(name)
    norm = final_norm(model)
    assert norm is not None
    norm.weight.data = torch.rand(32, generator=torch.Generator().manual_seed(0))
    part = linear_part(norm, 32, torch.device("cpu"))
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    expected, got = norm(states) - norm(-states), part.after(states)
    scale = expected.norm(dim=-1, keepdim=True) / got.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(got * scale, expected, rtol=1e-3, atol=1e-4)
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(part.read_before(rows) @ states.T, rows @ got.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["k", "q", "v"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_planted_edge_is_the_strongest_through_the_norm_before_it(name: str, kind: str) -> None:
    """Head 1 of layer 0 writes what the reader reads most once the norm has made it large; head 0 what it reads more of
    without the norm.
    """
    masked = MaskedModel(tiny_model(name))
    rows = input_rows(masked)
    reader = {"k": rows[2].key, "q": rows[2].query, "v": rows[2].value}[kind]
    group = 1
    outputs = output_projections(masked)[0].module
    weight = outputs.weight.data  # [D, H C], or its transpose in GPT-2
    columns = weight if name == "llama" else weight.T
    columns.mul_(0.01)
    heads = {"llama": {0: range(2), 1: range(2, 4)}, "gpt2": {0: range(1), 1: range(1, 2)}}[name]
    for kv_head, stream in ((0, 3), (1, 6)):
        for head in heads[kv_head]:
            columns[stream, head * 8 : head * 8 + 8] = 1.0
    own = reader.linears[int(reader.linear[0, 0])].weight.data
    read = own if name == "llama" else own.T
    repeats = len(reader.row) // masked.space.layers[2].num_kv_heads
    for row in reader.row[group * repeats : (group + 1) * repeats].flatten().tolist():
        read[row] = 0.01
        read[row, 3], read[row, 6] = 3.0, 1.0
    layers = masked.model.base_model
    norm = layers.layers[2].input_layernorm if name == "llama" else layers.h[2].ln_1
    norm.weight.data.fill_(1.0)
    norm.weight.data[3], norm.weight.data[6] = 0.1, 10.0
    edges = read_edges(masked, torch.ones(masked.space.num_channels, dtype=torch.bool))
    strongest = max(edges, key=lambda edge: edge.score)
    assert (strongest.source, strongest.target, strongest.kind) == ((0, 1), (2, group), kind)
    assert strongest.score > 0.5


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_attention_under_a_mask_is_that_of_the_masked_model(name: str) -> None:
    """Removed keys are gone from the recorded ones, and later layers see what the mask did to earlier ones."""
    masked, batch = MaskedModel(tiny_model(name)), Batch(ROWS)
    ablation = MeanAblation().fit(masked, batch, 4)
    keep = (torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    states, dense = states_on(masked, batch, keep, ablation), states_on(masked, batch)
    gate, fill = masked.space.view(keep, 0, "k"), ablation.fills(masked, batch)[0]
    first = dense.key[0] * gate[:, None] + (fill * (1 - gate))[:, None]
    torch.testing.assert_close(states.key[0], first)
    torch.testing.assert_close(states.query[0], dense.query[0])
    assert not torch.allclose(states.query[1], dense.query[1])


def test_values_promote_what_their_direction_adds_to_the_logits() -> None:
    """A value channel's step on the last position's stream moves logits as told, up to the norm's scale."""
    masked = MaskedModel(tiny_model("llama", vocab_size=256, num_hidden_layers=1))
    units = make_units(masked)
    labels = units.space.labels()
    number = int(((labels["kind"] == 1) & (labels["head"] == 1) & (labels["channel"] == 3)).nonzero()[0])
    (unit,) = explain(masked, Batch(ROWS), units, [number], byte_tokenizer()).units
    assert (unit.layer, unit.kind, unit.head, unit.channel) == (0, "v", 1, 3)
    assert unit.query_head in (2, 3)
    model = masked.model
    weight = model.get_submodule("model.layers.0.self_attn.o_proj").weight  # [D, H * C]
    direction = weight.view(32, 4, 8)[:, unit.query_head or 0, 3]
    norm = final_norm(model)
    assert norm is not None
    moved = model.get_output_embeddings().weight @ (direction * norm.weight) * unit.sd  # type: ignore[union-attr]
    order = moved.argsort(descending=True)
    tokens = [readable([int(token)], byte_tokenizer()) for token in order]
    assert [one.token for one in unit.promotes] == tokens[:8]
    assert [one.token for one in unit.suppresses] == tokens[:-9:-1]
    assert unit.promotes[0].weight == pytest.approx(float(moved.max()), rel=1e-4)


def test_keys_are_told_by_the_tokens_that_drive_them_and_their_query(tmp_path: Path) -> None:
    masked = MaskedModel(tiny_model("gpt2", vocab_size=256))
    counted = torch.zeros_like(ROWS, dtype=torch.bool)
    counted[:, -1] = True
    there = torch.ones_like(ROWS, dtype=torch.bool)
    there[0, 8:] = False
    counted[0] = False
    counted[0, 7] = True
    batch = Batch(ROWS, counted=counted, attention_mask=there)
    units = make_units(masked)
    found = explain(masked, batch, units, [5, 70], byte_tokenizer())
    unit = found.units[0]
    keys = states_on(masked, batch).key[0][:, 0, :, 5]
    assert unit.kind == "k"
    assert unit.mean == pytest.approx(float(keys[there].mean()), rel=1e-4)
    assert unit.mean_share == pytest.approx(
        float(keys[there].mean() ** 2 / keys[there].square().mean()), rel=1e-4
    )
    assert unit.bias_share == 0  # a fresh GPT-2 has biases of 0
    best = keys.masked_fill(~there, -torch.inf).argmax()
    row, position = divmod(int(best), 12)
    assert unit.keys[0].token == chr(int(ROWS[row, position]))
    assert unit.keys[0].value == pytest.approx(float(keys.flatten()[best]), rel=1e-4)
    assert unit.keys[0].before == bytes(ROWS[row, max(0, position - 6) : position].tolist()).decode()
    last = {chr(int(ROWS[0, 7])), *(chr(int(token)) for token in ROWS[1:, -1])}
    assert {match.query for match in unit.matches} <= last
    assert all(0 <= match.attention <= 1 for match in unit.matches)
    path = found.write(tmp_path)
    assert UnitMeanings.model_validate(json.loads(path.read_text())) == found
