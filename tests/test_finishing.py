"""The finishing pass keeps counts, never makes the selection KL worse, and drops what cancels."""

from functools import partial

import pytest
import torch
from architectures import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint.learning import MaskTrainer, NormalizedSGD
from mechint.learning.finishing import Exchange
from mechint.masking import MaskedModel, make_pools, make_units
from mechint.methods import ConstantSchedule, TopK
from mechint.metrics import KlObjective


def exchange(masked: MaskedModel, scope: str = "global", trials: int = 12, rows: int = 6) -> Exchange:
    """A finishing pass at half sparsity on random tokens."""
    units = make_units(masked)
    tokens = torch.randint(3, 97, (rows, 9), generator=torch.Generator().manual_seed(0))
    return Exchange(masked, units, make_pools(units, 0.5, scope), tokens, 4, trials)  # type: ignore[arg-type]


@given(seed=st.integers(0, 100), scope=st.sampled_from(["global", "per_layer", "per_head"]))
@settings(max_examples=8, deadline=None)
def test_counts_stay_and_the_selection_kl_never_rises(seed: int, scope: str) -> None:
    finishing = exchange(MaskedModel(tiny_model("llama")), scope)
    keep = finishing.pools.select(torch.rand(96, generator=torch.Generator().manual_seed(seed)))
    done = finishing.run(keep)
    pools = finishing.pools.of_unit
    assert torch.equal(torch.bincount(pools[done.keep]), torch.bincount(pools[keep]))
    assert done.kl_after <= done.kl_before
    assert done.kl_after == pytest.approx(finishing.kl(done.keep), abs=1e-6)
    assert done.exchanged == int((done.keep & ~keep).sum())
    assert done.tokens > 0


def test_a_random_mask_gets_better() -> None:
    done = exchange(MaskedModel(tiny_model("gpt2")), trials=30)
    finished = done.run(done.pools.select(torch.rand(192, generator=torch.Generator().manual_seed(0))))
    assert finished.exchanged > 0
    assert finished.kl_after < 0.9 * finished.kl_before


def test_gradients_by_sequence_add_up_to_the_whole() -> None:
    finishing = exchange(MaskedModel(tiny_model("llama")))
    keep = torch.rand(96, generator=torch.Generator().manual_seed(1)) > 0.5
    gates = keep.float().requires_grad_()
    tokens = finishing.rows[:, :-1]
    masked = finishing.masked
    loss = KlObjective()(
        masked.logits(tokens, finishing.units.to_channels(gates)), tokens, masked.logits(tokens)
    )
    loss.backward()
    assert gates.grad is not None
    torch.testing.assert_close(
        finishing.sequence_gradients(keep.float()).mean(0), gates.grad, rtol=1e-4, atol=1e-6
    )


def test_the_trainer_hands_on_what_the_pass_found() -> None:
    masked = MaskedModel(tiny_model("llama"))
    rows = torch.randint(3, 97, (12, 9), generator=torch.Generator().manual_seed(0))
    method, generator = TopK(finishing_trials=10), torch.Generator().manual_seed(0)
    method.prepare(masked, 0.5, generator)
    trainer = MaskTrainer(batch_size=4, selection_fraction=0.5)
    optimizer = partial(NormalizedSGD, lr=0.1)
    training = trainer.train(
        masked, rows, method, KlObjective(), optimizer, ConstantSchedule(), 2, generator, lambda *_: None
    )
    assert training.finishing is not None
    assert training.finishing.exchanged > 0
    assert torch.equal(method.pools.select(training.scores), training.finishing.keep)
    assert not torch.equal(method.hard_mask(), training.finishing.keep)
    assert training.tokens == 2 * 4 * 8 + training.finishing.tokens


def test_pairs_that_cancel_are_found_inside_a_head_only() -> None:
    finishing = exchange(MaskedModel(tiny_model("gpt2")), rows=4)
    gradients = torch.randn(4, 192, generator=torch.Generator().manual_seed(0))
    gradients[:, 5] = -gradients[:, 3]  # the same head
    gradients[:, 40] = -gradients[:, 6]  # another one
    assert finishing._opposite_pairs(torch.ones(192, dtype=torch.bool), gradients)[0] == (3, 5)
    assert (6, 40) not in finishing._opposite_pairs(torch.ones(192, dtype=torch.bool), gradients)
    keep = torch.ones(192, dtype=torch.bool)
    keep[3] = False
    assert (3, 5) not in finishing._opposite_pairs(keep, gradients)


def test_scores_agree_with_a_mask_even_where_they_hardly_differ() -> None:
    pools = exchange(MaskedModel(tiny_model("llama"))).pools
    scores = 5 + 1e-6 * torch.rand(96, generator=torch.Generator().manual_seed(0))
    keep = torch.zeros(96, dtype=torch.bool)
    keep[::2] = True
    assert torch.equal(pools.select(pools.agree(scores, keep)), keep)
