"""Masks act where the definition says, on every architecture."""

from collections.abc import Callable

import pytest
import torch
from architectures import ARCHITECTURES, PARTNERS, UNSUPPORTED, tiny_model
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import ChannelSpace, LayerShape, MaskedModel, masks_by_layer
from mechint.masking.ablation import Ablation, Fill
from mechint.masking.masks import flat_keep
from mechint.masking.rotary import rotary_partners
from mechint.masking.routing import _base_function
from mechint.results import load_masks, save_masks

MakeMasked = Callable[[str], MaskedModel]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_ones_is_the_dense_model_bitwise(name: str, tokens: Tensor) -> None:
    # T is longer than the sliding windows and the first row is padded, so lost attention masks would show
    padding = torch.ones_like(tokens)
    padding[0, :5] = 0
    model = tiny_model(name)
    dense = model(input_ids=tokens, attention_mask=padding, use_cache=False).logits
    masked = MaskedModel(model)
    ones = torch.ones(masked.space.num_channels)
    with masked.gated(ones):
        gated = model(input_ids=tokens, attention_mask=padding, use_cache=False).logits
    assert torch.equal(dense, gated)
    masked.close()
    again = model(input_ids=tokens, attention_mask=padding, use_cache=False).logits
    assert torch.equal(dense, again)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_is_found_once_in_order(name: str, make_masked: MakeMasked) -> None:
    masked = make_masked(name)
    layers = masked.space.layers
    assert [layer.index for layer in layers] == list(range(masked.model.config.num_hidden_layers))
    assert len({layer.name for layer in layers}) == len(layers)
    grouped = name not in {"gpt2", "gpt_neox", "opt", "deepseek_v3"}  # gpt_neox has no such setting
    assert {layer.num_kv_heads for layer in layers} == {2 if grouped else 4}


def _reference(masked: MaskedModel, tokens: Tensor, layer: int, kind: str, head: int, channel: int) -> Tensor:
    """Logits by the definition: q_c k_c, or the output coordinate, is dropped in every query head of the group."""
    shape = masked.space.layers[layer]
    group = shape.num_query_heads // shape.num_kv_heads
    heads = slice(head * group, (head + 1) * group)
    base = masked.implementation

    def attention(module, query, key, value, attention_mask, **kwargs):  # type: ignore[no-untyped-def]
        here = module.layer_idx == shape.index
        if here and kind == "k":
            query = query.clone()
            query[:, heads, :, channel] = 0
        out, weights = _base_function(base, module)(module, query, key, value, attention_mask, **kwargs)
        if here and kind == "v":
            out = out.clone()
            out[:, :, heads, channel] = 0
        return out, weights

    AttentionInterface.register("reference_sdpa" if base == "sdpa" else "reference_eager", attention)
    AttentionMaskInterface.register("reference_sdpa", sdpa_mask)
    AttentionMaskInterface.register("reference_eager", eager_mask)
    now = masked.model.config._attn_implementation
    masked.model.set_attn_implementation(f"reference_{base}")
    try:
        return masked.model(input_ids=tokens, use_cache=False).logits
    finally:
        masked.model.set_attn_implementation(now)


@pytest.mark.parametrize("kind", ["k", "v"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_removed_channel_changes_logits_as_defined(
    name: str, kind: str, tokens: Tensor, make_masked: MakeMasked
) -> None:
    masked = make_masked(name)
    layer, head, channel = 1, masked.space.layers[1].num_kv_heads - 1, 3
    gates = torch.ones(masked.space.num_channels)
    masked.space.view(gates, layer, kind)[head, channel] = 0  # type: ignore[arg-type]
    dense, got = masked.logits(tokens), masked.logits(tokens, gates)
    expected = _reference(masked, tokens, layer, kind, head, channel)
    assert (dense - expected).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_architectures_are_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=name):
        MaskedModel(tiny_model(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rotary_partners_are_found(name: str, make_masked: MakeMasked) -> None:
    masked = make_masked(name)
    width = masked.space.layers[0].key_width
    expected = torch.arange(width)
    for a, b in PARTNERS[name].items():
        expected[a], expected[b] = b, a
    assert torch.equal(rotary_partners(masked)[0], expected)


def test_layers_without_rotation_have_no_pairs(make_masked: MakeMasked) -> None:
    # every fourth layer of smollm3 has no position embedding
    partners = rotary_partners(make_masked("smollm3"))
    assert torch.equal(partners[3], torch.arange(8))
    assert not torch.equal(partners[2], torch.arange(8))


def test_interleaved_rotation_is_found() -> None:
    masked = MaskedModel(tiny_model("cohere"))
    assert rotary_partners(masked)[0].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


class Same(Ablation):
    """Removed channels become the same number everywhere."""

    name = "same"

    def fills(self, masked: MaskedModel, batch: Batch) -> list[Fill]:
        return masked.space.parts(self.constant(masked))

    def constant(self, masked: MaskedModel) -> Tensor:
        return torch.full((masked.space.num_channels,), 0.7)


def test_a_fill_replaces_what_is_removed(tokens: Tensor, make_masked: MakeMasked) -> None:
    masked = make_masked("llama")
    gates = torch.ones(masked.space.num_channels)
    masked.space.view(gates, 0, "k")[:] = 0
    zero = masked.logits(tokens, gates)
    # any constant added to all keys leaves the softmax as it is
    torch.testing.assert_close(masked.logits(tokens, gates, Same()), zero, rtol=1e-4, atol=1e-4)
    gates[:] = 1
    masked.space.view(gates, 0, "v")[:] = 0
    constant = masked.logits(tokens, gates, Same())
    assert (masked.logits(tokens, gates) - constant).abs().max() > 1e-2


SPACE = ChannelSpace(
    (LayerShape("model.layers.0.attn", 0, 4, 2, 3, 5), LayerShape("model.layers.1.attn", 1, 4, 2, 3, 5))
)


def test_flat_axis_covers_every_channel_once() -> None:
    assert SPACE.num_channels == 2 * 2 * (3 + 5)
    labels = SPACE.labels()
    rows = torch.stack([labels[name] for name in ("layer", "kind", "head", "channel")], dim=1)
    assert len(torch.unique(rows, dim=0)) == SPACE.num_channels
    marked = torch.zeros(SPACE.num_channels)
    SPACE.view(marked, 1, "v")[1, 4] = 1
    assert rows[marked.bool()].tolist() == [[1, 1, 1, 4]]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_mask_files_round_trip(suffix: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    keep = torch.rand(SPACE.num_channels) > 0.5
    importance = torch.rand(SPACE.num_channels)
    masks = masks_by_layer(SPACE, keep, importance)
    save_masks(masks, tmp_path, {"checkpoint_sha256": "0"})
    read = load_masks(tmp_path / f"final_masks.{suffix}")
    assert list(read) == [layer.name for layer in SPACE.layers]
    assert torch.equal(flat_keep(SPACE, read), keep)
    assert torch.equal(read["model.layers.1.attn"].v_importance, SPACE.view(importance, 1, "v"))
    content = torch.load(tmp_path / "final_masks.pt", weights_only=True)
    assert content["model.layers.0.attn"]["sparsity"] == masks["model.layers.0.attn"].sparsity


@pytest.mark.parametrize("name", ["final_masks.pt", "final_masks.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a mask", b"\x80\x04\x95"])
def test_damaged_mask_files_are_one_line(name: str, content: bytes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_masks(tmp_path / name)
    assert "\n" not in str(error.value)
