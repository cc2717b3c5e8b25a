"""What single units do, told from states and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures import tiny_model

from mechint.circuits.meaning import (
    attention,
    explain,
    final_norm,
    readable,
    scaling_of,
    score_terms,
    states_on,
)
from mechint.data.batch import Batch
from mechint.data.byte_tokenizer import byte_tokenizer
from mechint.masking import MaskedModel, MeanAblation, make_units
from mechint.results.units import UnitMeanings

ROWS = torch.randint(65, 91, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_the_terms_of_a_heads_score_add_up_to_what_the_model_attends_by(name: str) -> None:
    plain = tiny_model(name)
    plain.set_attn_implementation("eager")
    expected = plain(ROWS, output_attentions=True).attentions
    masked = MaskedModel(tiny_model(name))
    states = states_on(masked, Batch(ROWS))
    for position in range(len(masked.space.layers)):
        query, key, scaling = states.query[position], states.key[position], scaling_of(masked, position)
        terms = score_terms(query, key, scaling)
        wide = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        torch.testing.assert_close(terms.sum(-1), query @ wide.mT * scaling, rtol=1e-5, atol=1e-5)
        seen = terms.sum(-1).masked_fill(~torch.ones(12, 12, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        torch.testing.assert_close(seen, expected[position], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(attention(query, key, scaling), expected[position], rtol=1e-4, atol=1e-5)


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
    direction = weight.view(32, 4, 8)[:, unit.query_head, 3]
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
