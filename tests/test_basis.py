"""A change of coordinates leaves the model the same function, and a mask in it is a projection."""

import architectures
import pytest
import torch
from architectures import tiny_model

from mechint.data.batch import Batch
from mechint.masking import MaskedModel, MeanAblation
from mechint.masking.ablation import ZERO, Ablation
from mechint.masking.basis import Basis, Maps
from mechint.masking.prompt_ablations import CounterfactualAblation, MeanPerPositionAblation, states_of
from mechint.masking.sites import in_basis, sites_before_rotation
from mechint.masking.weights import output_projections, recording_heads
from mechint.methods.bases import PrincipalBasis, fisher_moments
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.metric import KL

REACHABLE = [name for name in architectures.ARCHITECTURES if name != "deepseek_v3"]


def random_basis(masked: MaskedModel, keys: str = "after_rope") -> Basis:
    """An invertible map for every head and kind, far from orthogonal."""
    generator = torch.Generator().manual_seed(0)
    maps = []
    for position, kind in masked.space.slices:
        layer = masked.space.layers[position]
        shape = (layer.num_kv_heads, layer.width(kind), layer.width(kind))
        read = torch.eye(shape[-1]) + 0.3 * torch.randn(shape, generator=generator)
        maps.append(Maps(read, torch.linalg.inv(read.double()).float()))
    return Basis.fixed(("random", "random"), keys, maps)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REACHABLE)
def test_open_gates_are_the_dense_model_and_closed_ones_are_the_empty_one(name: str) -> None:
    masked = MaskedModel(tiny_model(name))
    tokens = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    gates = torch.ones(masked.space.num_channels)
    dense, empty = masked.logits(tokens), masked.logits(tokens, 0 * gates)
    for keys in ("after_rope", "before_rope"):
        view = in_basis(masked, random_basis(masked, keys))
        assert torch.equal(view.logits(tokens, gates), dense)
        torch.testing.assert_close(view.logits(tokens, 0 * gates), empty, rtol=1e-4, atol=1e-4)
    assert torch.equal(masked.logits(tokens), dense)


@pytest.mark.parametrize("name", REACHABLE)
def test_recorded_states_have_the_same_products(name: str) -> None:
    masked = MaskedModel(tiny_model(name))
    tokens = torch.randint(3, 97, (2, 6), generator=torch.Generator().manual_seed(1))
    for keys in ("after_rope", "before_rope"):
        seen: list[list[torch.Tensor]] = []
        for basis in (Basis.fixed(("channels",) * 2, keys, identity(masked)), random_basis(masked, keys)):  # type: ignore[arg-type]
            scores: list[torch.Tensor] = []

            def record(
                position: int,
                query: torch.Tensor,
                key: torch.Tensor,
                value: torch.Tensor,
                scores: list[torch.Tensor] = scores,
            ) -> None:
                groups = query.unflatten(1, (key.shape[1], -1))
                scores.append(groups @ key.unsqueeze(2).mT)

            view = in_basis(masked, basis)
            with view.recording(record), torch.no_grad():
                view.model(input_ids=tokens, use_cache=False)
            seen.append(scores)
        assert len(seen[0]) == len(masked.space.layers)
        for plain, changed in zip(*seen, strict=True):
            torch.testing.assert_close(plain, changed, rtol=1e-4, atol=1e-4)


def identity(masked: MaskedModel) -> list[Maps]:
    """The channels as a basis."""
    return [Maps(torch.eye(n).expand(g, n, n), torch.eye(n).expand(g, n, n)) for g, n in sizes(masked)]


def sizes(masked: MaskedModel) -> list[tuple[int, int]]:
    """Heads and widths in the order of maps."""
    layers = masked.space.layers
    return [(layers[i].num_kv_heads, layers[i].width(kind)) for i, kind in masked.space.slices]


def test_a_mask_before_the_rotation_projects_the_rows_of_the_key_weights() -> None:
    masked = MaskedModel(tiny_model("llama"))
    tokens = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    basis = random_basis(masked, "before_rope")
    gates = (torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    got = in_basis(masked, basis).logits(tokens, gates)
    plain = tiny_model("llama")
    for position, layer in enumerate(plain.model.layers):
        for kind, module in (("k", layer.self_attn.k_proj), ("v", layer.self_attn.v_proj)):
            maps, open_ = basis.of(masked.space, position, kind), masked.space.view(gates, position, kind)  # type: ignore[arg-type]
            kept = (maps.read * open_.unsqueeze(-2)) @ maps.write  # [G, C, C]
            rows = module.weight.data.unflatten(0, (2, -1))  # [G, C, D]
            module.weight.data = (kept.mT @ rows).flatten(0, 1)
    torch.testing.assert_close(got, plain(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)


def test_the_output_projection_follows_the_values() -> None:
    masked = MaskedModel(tiny_model("llama"))
    view = in_basis(masked, random_basis(masked))
    tokens = torch.randint(3, 97, (1, 6), generator=torch.Generator().manual_seed(1))
    outputs = []
    for model in (masked, view):
        found = output_projections(model)
        seen: list[torch.Tensor] = []
        with recording_heads(found, lambda position, heads, seen=seen: seen.append(heads)), torch.no_grad():
            model.model(input_ids=tokens, use_cache=False)
        outputs.append([torch.einsum("bthc,dhc->btd", h, o.weight) for h, o in zip(seen, found, strict=True)])
    for plain, changed in zip(*outputs, strict=True):
        torch.testing.assert_close(plain, changed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", ["after_rope", "before_rope"])
def test_gradients_in_a_basis_are_those_of_finite_differences(keys: str) -> None:
    masked = MaskedModel(tiny_model("gpt_neox").double())
    basis = random_basis(masked, keys)
    exact = [Maps(one.read.double(), torch.linalg.inv(one.read.double())) for one in basis.maps]
    view = in_basis(masked, Basis.fixed(basis.names, basis.keys, exact))
    tokens = torch.randint(3, 97, (2, 8), generator=torch.Generator().manual_seed(0))
    gates = torch.rand(2, masked.space.num_channels, dtype=torch.double).requires_grad_()
    view.logits(tokens, gates).square().mean().backward()
    assert gates.grad is not None
    for place in ((0, 0), (1, 37), (0, 95)):
        step = torch.zeros_like(gates)
        step[place] = 1e-4
        with torch.no_grad():
            high, low = (view.logits(tokens, gates + sign * step).square().mean() for sign in (1, -1))
        assert gates.grad[place].item() == pytest.approx(((high - low) / 2e-4).item(), rel=1e-4, abs=1e-9)


def test_a_model_without_whole_keys_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"basis.keys=after_rope"):
        sites_before_rotation(MaskedModel(tiny_model("deepseek_v3")))


def test_means_follow_the_coordinates() -> None:
    """What mean ablation puts in is the same model in every basis, also in one that changes after it was fitted."""
    masked = MaskedModel(tiny_model("llama"))
    tokens = torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(1))
    batch, closed = Batch.of_rows(tokens), torch.zeros(masked.space.num_channels)
    first, second = (random_basis(masked, keys) for keys in ("after_rope", "after_rope"))
    plain = masked.logits(tokens, closed, MeanAblation().fit(masked, batch, 2))
    fitted = MeanAblation().fit(in_basis(masked, first), batch, 2)
    for basis in (first, second):
        got = in_basis(masked, basis).logits(tokens, closed, fitted)
        torch.testing.assert_close(got, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("keys", ["after_rope", "before_rope"])
@pytest.mark.parametrize(
    "ablation",
    [ZERO, MeanAblation(), MeanPerPositionAblation(), CounterfactualAblation()],
    ids=lambda a: a.name,
)
def test_moments_are_of_what_an_ablation_takes_away(ablation: Ablation, keys: str) -> None:
    masked = MaskedModel(tiny_model("llama"))
    tokens, paired = torch.randint(3, 97, (2, 6, 12), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, paired=paired)
    found = fisher_moments(Evaluator(masked, batch, ablation, 2), keys, 3, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    view = in_basis(masked, Basis.fixed(("channels",) * 2, keys, identity(masked)))  # type: ignore[arg-type]
    states, others = states_of(view, Batch(tokens)), states_of(view, Batch(paired))
    for moments, state, other in zip(found, states, others, strict=True):
        taken = {
            "zero": state,
            "mean": state - state.mean((0, 2), keepdim=True),
            "mean_per_position": state - state.mean(0, keepdim=True),
            "counterfactual": state - other,
        }[ablation.name]
        wanted = torch.einsum("bgtc,bgtd->gcd", taken.double(), taken.double()) / tokens.numel()
        torch.testing.assert_close(moments.states, wanted, rtol=1e-4, atol=1e-6)


def test_directions_are_those_that_the_ablation_changes() -> None:
    """What two prompts have in common costs nothing to remove, however large it is."""
    masked = MaskedModel(tiny_model("llama"))
    tokens = torch.randint(3, 97, (32, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, 4], paired = 5, tokens.clone()
    paired[:, 4] = 7
    batch, ablation = Batch(tokens, paired=paired), CounterfactualAblation()
    costs = []
    for seen in (ablation, ZERO):
        view = PrincipalBasis().fit(Evaluator(masked, batch, seen, 8), 0)
        assert view.basis is not None
        assert view.basis.energy is not None
        keep = torch.zeros(masked.space.num_channels, dtype=torch.bool)
        keep[view.basis.energy.topk(len(keep) // 8).indices] = True
        costs.append(float(Evaluator(view, batch, ablation, 8)([keep], [KL]).mean()))
    assert costs[0] < 0.7 * costs[1]
