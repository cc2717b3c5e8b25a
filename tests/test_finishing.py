"""The finishing pass keeps counts, never makes the objective worse on selection data, and drops what cancels."""

import pytest
import torch
import torch.nn.functional as F
from architectures import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import rest_slow
from torch import Tensor

from mechint.data.batch import Batch
from mechint.learning import MaskTrainer
from mechint.learning.finishing import Exchange
from mechint.learning.recipe import Recipe
from mechint.masking import MaskedModel, make_pools, make_units
from mechint.methods import ConstantSchedule, TopK
from mechint.metrics import KL, NLL, Evaluator, Metric

OBJECTIVES = {metric.name: metric for metric in (KL, NLL)}


def exchange(
    masked: MaskedModel, scope: str = "global", trials: int = 12, rows: int = 6, objective: Metric = KL
) -> Exchange:
    """A finishing pass at half sparsity on random tokens."""
    units = make_units(masked)
    tokens = torch.randint(3, 97, (rows, 9), generator=torch.Generator().manual_seed(0))
    selection = Evaluator(masked, Batch.of_rows(tokens), at_once=4, dense_bytes=2**20)
    return Exchange(selection, objective, units, make_pools(units, 0.5, scope), trials)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@given(seed=st.integers(0, 100), scope=st.sampled_from(["global", "per_layer", "per_head"]))
@settings(max_examples=8, deadline=None)
def test_counts_stay_and_the_objective_never_rises(objective: str, seed: int, scope: str) -> None:
    metric = OBJECTIVES[objective]
    finishing = exchange(MaskedModel(tiny_model("llama")), scope, objective=metric)
    keep = finishing.pools.select(torch.rand(96, generator=torch.Generator().manual_seed(seed)))
    done = finishing.run(keep)
    pools = finishing.pools.of_unit
    assert torch.equal(torch.bincount(pools[done.keep]), torch.bincount(pools[keep]))
    # measured apart from the pass, by the plain definition on whole logits
    before, after = (value_of(metric, finishing, mask) for mask in (keep, done.keep))
    assert after <= before
    assert (done.before, done.after) == (pytest.approx(before, abs=1e-5), pytest.approx(after, abs=1e-5))
    assert done.after == pytest.approx(finishing.measure(done.keep), abs=1e-6)
    assert done.tried <= finishing.trials
    assert done.exchanged == int((done.keep & ~keep).sum())
    assert done.tokens > 0


def value_of(metric: Metric, finishing: Exchange, keep: Tensor) -> float:
    """The mean KL from the dense model, or NLL, of a hard mask on the selection data."""
    masked, batch = finishing.selection.masked, finishing.selection.batch
    logits, dense = masked.logits(batch, finishing.units.to_channels(keep.float())), masked.logits(batch)
    if metric is NLL:
        return F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten()).item()  # type: ignore[union-attr]
    log, other = dense.log_softmax(-1), logits.log_softmax(-1)
    return (log.exp() * (log - other)).sum(-1).mean().item()


@pytest.mark.parametrize(
    ("objective", "share"), rest_slow([("kl", 0.9), ("nll", 0.97)], [("kl", 0.9)])
)  # nothing predicts random tokens
def test_a_random_mask_gets_better(objective: str, share: float) -> None:
    done = exchange(MaskedModel(tiny_model("gpt2")), trials=30, objective=OBJECTIVES[objective])
    finished = done.run(done.pools.select(torch.rand(192, generator=torch.Generator().manual_seed(0))))
    assert finished.exchanged > 0
    assert finished.after < share * finished.before


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_by_sequence_add_up_to_the_whole(objective: str) -> None:
    metric = OBJECTIVES[objective]
    finishing = exchange(MaskedModel(tiny_model("llama")), objective=metric)
    keep = torch.rand(96, generator=torch.Generator().manual_seed(1)) > 0.5
    gates = keep.float().requires_grad_()
    masked, batch = finishing.selection.masked, finishing.selection.batch
    channels = finishing.units.to_channels(gates)
    metric.mean(masked.logits(batch, channels), batch, masked.logits(batch)).backward()
    assert gates.grad is not None
    torch.testing.assert_close(
        finishing.sequence_gradients(keep.float()).mean(0), gates.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_trainer_hands_on_what_the_pass_found(objective: str) -> None:
    masked = MaskedModel(tiny_model("llama"))
    rows = torch.randint(3, 97, (12, 9), generator=torch.Generator().manual_seed(0))
    method, generator = TopK(finishing_trials=10), torch.Generator().manual_seed(0)
    method.prepare(masked, 0.5, generator)
    trainer, metric = MaskTrainer(batch_size=4, selection_fraction=0.5), OBJECTIVES[objective]
    recipe = Recipe(method=method, objective=metric, schedule=ConstantSchedule(), steps=2)
    batch, tried = Batch.of_rows(rows), []
    training = trainer.train(masked, batch, recipe, generator, on_trial=tried.append)
    assert training.finishing is not None
    kept = method.units.to_channels(training.finishing.keep)
    selection = Evaluator(masked, batch[6:])
    assert training.finishing.after == pytest.approx(selection.mean(kept, metric), rel=1e-5)
    assert training.finishing.after < training.finishing.before
    assert tried == list(range(1, training.finishing.tried + 1))
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
