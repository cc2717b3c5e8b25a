"""Attention that cannot be routed by name is routed module by module, and masks mean the same there."""

import copy
from typing import Any

import pytest
import torch
from families import family_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mechint.errors import UserError
from mechint.masking import MaskedModel
from mechint.masking.examining import check_routing, examine
from mechint.masking.rotary import rotary_partners
from mechint.masking.routing import enable_hooks, restore_attention
from mechint.masking.weights import input_rows

TOKENS = torch.randint(4, 97, (2, 16), generator=torch.Generator().manual_seed(0))
WINDOWS = ["sliding_attention", "full_attention"] * 2

# Family, changes, and the name of the output projection beside the attention's other parts.
ROUTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt_neo": ("gpt_neo", {}, "out_proj"),
    "gptj": ("gptj", {}, "out_proj"),
    "codegen": ("codegen", {}, "out_proj"),
    "openai-gpt": ("openai-gpt", {}, "c_proj"),
    "bloom": ("bloom", {}, "dense"),
    "mpt": ("mpt", {}, "out_proj"),
    "falcon": ("falcon", {"multi_query": True}, "dense"),
    "falcon heads": ("falcon", {"multi_query": False, "num_kv_heads": 4}, "dense"),
    "falcon groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, "dense"),
    "falcon alibi": ("falcon", {"alibi": True}, "dense"),
    "deepseek_v32": ("deepseek_v32", {}, "o_proj"),
    "glm_moe_dsa": ("glm_moe_dsa", {}, "o_proj"),
    "axk2": ("axk2", {}, "o_proj"),
    "hy_v4": ("hy_v4", {}, "o_proj"),
    "gemma4_text": ("gemma4_text", {"layer_types": WINDOWS, "num_kv_shared_layers": 2}, "o_proj"),
    "gemma3n_text": ("gemma3n_text", {}, "o_proj"),
}


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("name", ROUTED)
def test_removed_channels_are_rows_and_columns_of_zeros(name: str) -> None:
    kind, changes, output = ROUTED[name]
    model = family_model(kind, **changes)
    dense = logits(model)
    masked = MaskedModel(model)
    layer, channel = masked.space.layers[0], 5
    groups = layer.num_query_heads // layer.num_kv_heads
    readers = examine(masked).shared_layers.get(layer.index, [])

    gates = torch.ones(masked.space.num_channels)
    masked.space.view(gates, 0, "v")[-1, channel] = 0
    changed = copy.deepcopy(model)
    restore_attention(changed, masked.implementation)
    for attention in (layer.name, *readers):
        projection: Any = changed.get_submodule(attention).get_submodule(output)
        columns = projection.weight if isinstance(projection, Conv1D) else projection.weight.T
        for head in range(layer.num_query_heads - groups, layer.num_query_heads):
            columns[head * layer.value_width + channel] = 0
    assert_same_effect(masked.logits(TOKENS, gates), logits(changed), dense)

    if kind in {"deepseek_v32", "glm_moe_dsa", "axk2", "hy_v4", "gemma4_text", "gemma3n_text"}:
        return  # keys go through a norm, or their shared part through all heads
    pair = [channel, int(rotary_partners(masked)[0][channel])]
    gates[:] = 1
    masked.space.view(gates, 0, "k")[-1, pair] = 0
    key = input_rows(masked)[0].key
    position = [name for name, _ in model.named_modules()]
    changed = copy.deepcopy(model)
    restore_attention(changed, masked.implementation)
    for c in pair:
        linear = key.linears[int(key.linear[-1, c])]
        path = next(path for path in position if model.get_submodule(path) is linear)
        _silence(changed.get_submodule(path), int(key.row[-1, c]))
    assert_same_effect(masked.logits(TOKENS, gates), logits(changed), dense)


def assert_same_effect(got: Tensor, expected: Tensor, dense: Tensor) -> None:
    effect = (expected - dense).abs().max()
    assert effect > 2e-5
    assert (got - expected).abs().max() < 0.02 * effect


def _silence(linear: nn.Module, row: int) -> None:
    weight: Any = linear.weight
    (weight.T if isinstance(linear, Conv1D) else weight)[row] = 0
    if getattr(linear, "bias", None) is not None:
        bias: Any = linear.bias
        bias[row] = 0


@pytest.mark.parametrize("name", ["gptj", "falcon groups", "deepseek_v32", "gpt2"])
def test_other_models_and_copies_are_left_alone(name: str) -> None:
    kind, changes, _ = ROUTED.get(name, (name, {}, ""))
    model, other = family_model(kind, **changes), family_model(kind, **changes)
    dense = logits(model)
    masked = MaskedModel(model)
    gates = torch.zeros(masked.space.num_channels)
    twin = MaskedModel(copy.deepcopy(model))  # a copy's hooks are its own
    with masked.gated(gates):
        assert torch.equal(logits(other), dense)
        assert torch.equal(logits(twin.model), dense)
        assert not torch.allclose(logits(model), dense)
    masked.close()
    assert not any("forward" in module.__dict__ or "_attn" in module.__dict__ for module in model.modules())
    assert enable_hooks(model) == restored_name(model)


def restored_name(model: PreTrainedModel) -> str:
    name = str(model.config._attn_implementation)
    return name.removeprefix("mechint_")


def test_a_model_that_changes_when_routed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As deepseek_v32 did while it was routed by name: its index mask vanished beyond index_topk tokens."""
    monkeypatch.setattr("mechint.masking.routing._looks_at_name", lambda kind: False)
    masked = MaskedModel(family_model("deepseek_v32"))
    check_routing(masked, TOKENS[:, :6])
    with pytest.raises(UserError, match=r"'deepseek_v32' computes something else .* 16 tokens"):
        check_routing(masked, TOKENS)


def test_falcon_needs_sdpa() -> None:
    with pytest.raises(UserError, match=r"use that or model\.attention=auto"):
        MaskedModel(family_model("falcon", attn_implementation="eager"))


def test_facts_in_words() -> None:
    notes = " | ".join(examine(MaskedModel(family_model("nemotron_h"))).notes())
    assert "layers without keys and values to mask: 0-1, 3 (NemotronHMLP" in notes
    assert "second path around attention" in notes
    notes = " | ".join(examine(MaskedModel(family_model("gemma4_text"))).notes())
    assert "keys and values of layer 0 are also read by model.layers.2.self_attn, which have none" in notes


def test_equal_keys_and_values_are_found_layer_by_layer() -> None:
    model = family_model("llama")
    attention = model.model.layers[2].self_attn
    attention.v_proj.weight.copy_(attention.k_proj.weight)
    facts = examine(MaskedModel(model))
    assert facts.tied_layers == (2,)
    assert "mask.tie_kv=true" in facts.notes()[0]
    attention.v_proj.weight[3, 3] += 0.01
    assert examine(MaskedModel(model)).tied_layers == ()


@pytest.mark.parametrize("name", ["bert", "gpt_neox"])
def test_what_reads_in_both_directions_is_measured(name: str) -> None:
    """`is_decoder: false` means that in some families and nothing in others."""
    model = family_model(name)
    facts = examine(MaskedModel(model))
    assert not facts.bypassed
    model = family_model(name, is_decoder=False)
    if name == "gpt_neox":
        assert examine(MaskedModel(model)) == facts
        return
    with pytest.raises(UserError, match=r'bert reads in both directions.* set "is_decoder": true'):
        examine(MaskedModel(model))
