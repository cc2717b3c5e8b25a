"""Rotated key channels are paired whatever their sizes."""

import pytest
import torch
from architectures import tiny_model

from mechint.errors import UserError
from mechint.masking import MaskedModel, make_units
from mechint.masking.rotary import _pair_up, rotary_partners

HALVES = [4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_keys_of_very_different_size_are_paired(scale: float) -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.k_proj.weight.data[0] *= scale  # channel 0 of head 0, whose partner is channel 4
        layer.self_attn.k_proj.weight.data[9:] /= scale
    masked = MaskedModel(model)
    assert [partners.tolist() for partners in rotary_partners(masked)] == 3 * [HALVES]
    units = make_units(masked, "rope_pair")
    assert int(units.has_key.sum()) == masked.space.num_channels // 4


@pytest.mark.parametrize("size", [30.0, 3e3])
def test_outlier_biases_hide_no_pair(size: float) -> None:
    model = tiny_model("qwen2")
    for layer in model.model.layers:
        bias = layer.self_attn.k_proj.bias.data
        bias.normal_(generator=torch.Generator().manual_seed(0))
        bias[3] = size
    assert [partners.tolist() for partners in rotary_partners(MaskedModel(model))] == 3 * [HALVES]


def test_dead_channels_still_have_a_partner() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.k_proj.weight.data.zero_()
    assert [partners.tolist() for partners in rotary_partners(MaskedModel(model))] == 3 * [HALVES]


def test_channels_that_change_without_a_partner_are_refused() -> None:
    squares = torch.rand(8, 16, 4, dtype=torch.double)
    with pytest.raises(UserError, match="do not rotate in pairs"):
        _pair_up(squares, 1e-5, "layer")
