"""Units are what they say, and counts are exact."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechint.errors import UserError
from mechint.masking import ChannelSpace, LayerShape, MaskedModel, Pools, Units, make_pools, make_units
from mechint.masking.units import round_half_up

MakeMasked = Callable[[str], MaskedModel]


def plain_units(layers: int, heads: int, width: int) -> Units:
    """One unit per channel of a model that does not exist."""
    space = ChannelSpace(
        tuple(LayerShape(f"layer.{i}", i, heads, heads, width, width) for i in range(layers))
    )
    labels = space.labels()
    kind = labels["kind"].bool()
    return Units(space, torch.arange(space.num_channels), labels["layer"], labels["head"], ~kind, kind)


@given(
    layers=st.integers(1, 4),
    heads=st.integers(1, 3),
    width=st.integers(1, 5),
    target=st.floats(0, 1),
    share=st.floats(0, 1),
    scope=st.sampled_from(["global", "per_layer", "per_head"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_selection_keeps_exactly_the_rounded_count(
    layers: int, heads: int, width: int, target: float, share: float, scope: str, seed: int
) -> None:
    units = plain_units(layers, heads, width)
    pools = make_pools(units, target, scope)  # type: ignore[arg-type]
    scores = torch.rand(units.count, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    keep = pools.select(scores, share)
    assert int(keep.sum()) == round_half_up(units.count * (1 - share * target))
    for pool in range(len(pools.share)):
        inside = pools.of_unit == pool
        kept, removed = scores[inside & keep], scores[inside & ~keep]
        assert not len(kept) or not len(removed) or kept.min() >= removed.max()
        # every pool is within one unit of its own share
        assert abs(len(kept) - int(inside.sum()) * (1 - share * target)) < 1 + 1e-9


def test_equal_scores_are_decided_by_number() -> None:
    pools = Pools(torch.zeros(6, dtype=torch.long), torch.tensor([0.5]))
    assert pools.select(torch.ones(6)).tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("unit", "tie", "keys", "values"),
    [
        ("channel", False, 48, 48),
        ("channel", True, 48, 48),
        ("rope_pair", False, 24, 48),
        ("rope_pair", True, 24, 24),
        ("head", False, 6, 6),
        ("head", True, 6, 6),
    ],
)
def test_units_of_a_rotary_model(
    unit: str, tie: bool, keys: int, values: int, make_masked: MakeMasked
) -> None:
    units = make_units(make_masked("llama"), unit, tie)  # type: ignore[arg-type]
    assert (int(units.has_key.sum()), int(units.has_value.sum())) == (keys, values)
    assert units.count == (keys if tie else keys + values)
    assert len(torch.unique(units.of_channel)) == units.count


def test_a_rope_pair_switches_both_channels_that_rotate_together(make_masked: MakeMasked) -> None:
    masked = make_masked("llama")
    units = make_units(masked, "rope_pair")
    gates = units.to_channels(torch.arange(units.count))
    keys = masked.space.view(gates, 1, "k")
    assert torch.equal(keys[:, :4], keys[:, 4:])
    assert len(torch.unique(masked.space.view(gates, 1, "v"))) == 16


def test_separate_targets_are_met_together(make_masked: MakeMasked) -> None:
    units = make_units(make_masked("llama"))
    keep = make_pools(units, 0.75, key_sparsity=0.9).select(torch.rand(units.count))
    assert int(keep.sum()) == 24
    assert int(keep[units.has_key].sum()) in (4, 5)
    both = make_pools(units, 0.5, key_sparsity=0.25, value_sparsity=1.0).select(torch.rand(units.count))
    assert (int(both[units.has_key].sum()), int(both[units.has_value].sum())) == (36, 0)


def _tied_with_separate_targets(masked: MaskedModel) -> Pools:
    return make_pools(make_units(masked, tie_kv=True), 0.5, key_sparsity=0.5)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda masked: make_units(masked, "neuron"), "mask.unit=neuron"),
        (lambda masked: make_pools(make_units(masked), 0.5, "everywhere"), "mask.scope=everywhere"),
        (lambda masked: make_pools(make_units(masked), 0.9, key_sparsity=0.1), "value_sparsity"),
        (_tied_with_separate_targets, "tie_kv=false"),
    ],
)
def test_impossible_units_are_one_line(
    attempt: Callable[[MaskedModel], Tensor], message: str, make_masked: MakeMasked
) -> None:
    with pytest.raises(UserError, match=message) as error:
        attempt(make_masked("llama"))
    assert "\n" not in str(error.value)


def test_tying_needs_equal_widths(make_masked: MakeMasked) -> None:
    with pytest.raises(UserError, match="same width"):
        make_units(make_masked("deepseek_v3"), tie_kv=True)
