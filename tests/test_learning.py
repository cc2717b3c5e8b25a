"""Mask methods, schedules, objectives and the trainer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from architectures import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from parts import LEARNERS
from torch import Tensor

from mechint.analysis.describing import binarization_gap
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.learning.recipe import Recipe
from mechint.learning.trainer import Training
from mechint.masking import MaskedModel
from mechint.methods import (
    AnnealedSigmoid,
    ConstantSchedule,
    CosineSchedule,
    CubicSchedule,
    EdgePopup,
    ExponentialSchedule,
    HardConcrete,
    LeanK,
    LinearSchedule,
    NormalizedSGD,
    TopK,
)
from mechint.methods.method import LearnedMethod, MaskMethod, importance
from mechint.methods.schedules import warm_up_and_decay
from mechint.metrics import KL, NLL, TOP1
from mechint.metrics.dense_outputs import DenseOutputs

# Passes over the sequences that a method looks at before its first step.
STARTED_FROM, LOOKS = 2, {"Ensemble": 6}
SCHEDULES = [LinearSchedule, CubicSchedule, CosineSchedule, ExponentialSchedule]


def train(
    method: MaskMethod,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    target: float = 0.6,
    steps: int = 6,
    **settings: Any,
) -> tuple[Tensor, Training]:
    """Learn on random tokens with a tiny model; return the final hard mask and the history."""
    masked = MaskedModel(tiny_model("llama"))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 97, (6, 17), generator=generator)
    method.prepare(masked, target, generator)
    training = MaskTrainer(batch_size=2, log_every=2, **settings).train(
        masked,
        Batch.of_rows(rows),
        Recipe(method=method, make_optimizer=make_optimizer, schedule=CubicSchedule(end=0.8), steps=steps),
        generator,
    )
    return method.hard_mask(), training


@pytest.mark.parametrize(("method", "optimizer"), LEARNERS.values(), ids=LEARNERS)
def test_a_method_ends_exact_and_repeats(method: type[MaskMethod], optimizer: Any) -> None:
    keep, training = train(method(), optimizer)
    again, repeated = train(method(), optimizer)
    assert int(keep.sum()) == round(0.4 * 96)
    assert torch.equal(keep, again)
    assert training.history == repeated.history
    first, last = training.history[0], training.history[-1]
    if not isinstance(method(), EdgePopup):  # which starts from a random mask
        assert first["sparsity"] == 0
    if (
        first["scheduled_sparsity"] is not None
    ):  # prices without a target, and quantiles, have none on the way
        assert first["scheduled_sparsity"] == 0
        assert last["scheduled_sparsity"] == pytest.approx(1 - round(0.4 * 96) / 96)
    if isinstance(method(), TopK):  # the others approach the count by a penalty, which takes more steps
        assert last["sparsity"] == pytest.approx(1 - int(keep.sum()) / 96)
    made = method()
    looks = LOOKS.get(
        type(made).__name__, 5 if getattr(made, "start_from", "") == "integrated_gradients" else 0
    )
    assert training.tokens == (6 * 2 + looks * STARTED_FROM) * 16


def prepared(method: LearnedMethod, target: float = 0.5) -> LearnedMethod:
    """A method with fresh scores for a tiny model of 96 channels."""
    method.prepare(MaskedModel(tiny_model("llama")), target, torch.Generator().manual_seed(0))
    return method


def test_hard_concrete_is_that_of_edge_pruning() -> None:
    method = prepared(HardConcrete())
    assert isinstance(method, HardConcrete)
    scores, multipliers = method.parameter_groups()
    assert scores["lr"] == multipliers["lr"] == 0.8
    assert multipliers["maximize"]
    assert method.scores().mean().item() == pytest.approx(10, abs=0.01)
    assert [method.rate(x) for x in (0, 1 / 30, 1 / 15, 8 / 15, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    with torch.no_grad():
        method._log_alpha.copy_(torch.linspace(-12, 12, 96))
    soft = method.soft_gates()
    assert soft is not None
    # P(z = 0) = sigmoid(2/3 log(1/11) - log_alpha), summed over the units
    closed = torch.sigmoid(2 / 3 * torch.tensor(1 / 11).log() - method.scores()).sum().round()
    assert int((soft == 0).sum()) == int(closed)
    assert soft[-1].item() == pytest.approx(torch.sigmoid(torch.tensor(0.8 * 12 * 1.5)).item())
    drawn = torch.stack([method.gates(1.0, 1.0, 1).detach() for _ in range(400)])
    assert (drawn == 0).float().mean(0).sum().item() == pytest.approx(float(closed), abs=1.5)


def test_the_price_of_an_open_gate_is_per_layer_and_the_slope_ends_beyond_200() -> None:
    method = prepared(AnnealedSigmoid(multiplier=0.5))
    gates = method.gates(1.0, 0.0, 1)
    assert gates.tolist() == pytest.approx([torch.sigmoid(torch.tensor(1.0)).item()] * 96)
    penalty = method.penalty(1.0)
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.5 * gates.sum().item() / 3)
    assert method.temperature_at(1 / 1.1) == pytest.approx(1 / 200)
    assert method.temperature_at(1.0) < 1 / 300


def test_leank_learns_scales_first_and_cuts_at_their_quantile_then() -> None:
    method = prepared(LeanK())
    assert isinstance(method, LeanK)
    with torch.no_grad():
        method._scales.copy_(torch.linspace(-0.5, 1.5, 96))
    first = method.gates(0.3, 0.5, 1)
    assert first.min() == 0
    assert first.max() == 1
    assert method.penalty(0.3).item() == pytest.approx(0.06 * first.mean().item())  # type: ignore[union-attr]
    second = method.gates(0.3, 0.95, 1)
    assert method.penalty(0.3) is None
    assert int((second > 0).sum()) == 48
    assert torch.equal(second > 0, method.hard_mask())
    assert torch.equal(second.detach(), method.soft_gates())
    second.sum().backward()
    assert torch.equal(method._scales.grad, torch.ones(96))  # also of those that are cut
    rates = [method.rate(x) for x in (0, 1 / 11, 0.5, 10 / 11 - 1e-9, 10 / 11, 10.5 / 11, 1)]
    assert rates == pytest.approx([0.1, 0.5, 1, 0.1, 0.05, 0.5, 0.05], abs=1e-6)


def test_edge_popup_keeps_the_largest_magnitudes_and_learns_their_signs() -> None:
    method = prepared(EdgePopup())
    assert isinstance(method, EdgePopup)
    assert method.scores().max() <= 96**-0.5
    with torch.no_grad():
        method._scores.copy_(torch.linspace(-2, 1, 96))
    gates = method.gates(1.0, 0.0, 1)
    assert gates[:33].sum() == 33  # from -2 to -1: larger than any positive one
    assert gates.sum() == 48
    gates.sum().backward()
    assert torch.equal(method._scores.grad, torch.linspace(-2, 1, 96).sign())


def test_only_methods_with_soft_gates_have_a_gap_between_soft_and_hard() -> None:
    kl, positions = torch.tensor([0.4, 0.7], dtype=torch.double), torch.tensor([2.0, 1.0]).double()
    hard = binarization_gap(kl, 3, None, None, positions)
    assert (hard.soft_kl, hard.soft_open, hard.gap) == (pytest.approx(0.5), 3, 0)
    soft = binarization_gap(kl, 3, torch.tensor([0.9, 0.6, 0.2]), kl - 0.3, positions)
    assert (soft.soft_kl, soft.soft_open, soft.gap) == (pytest.approx(0.2), 2, pytest.approx(0.3))


def test_the_default_method_starts_with_no_loss_at_all() -> None:
    _, training = train(TopK(finishing_trials=0, perturbed=0), partial(NormalizedSGD, lr=0.1))
    assert training.history[0]["loss"] == 0
    _, training = train(TopK(finishing_trials=0), partial(NormalizedSGD, lr=0.1))
    assert training.history[0]["sparsity"] == 0


def test_no_weight_ever_gets_a_gradient() -> None:
    masked = MaskedModel(tiny_model("gpt2"))
    gates = torch.ones(masked.space.num_channels, requires_grad=True)
    masked.logits(torch.randint(3, 97, (1, 8)), gates).sum().backward()
    assert gates.grad is not None
    assert gates.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in masked.model.parameters())


def test_gate_gradients_are_those_of_finite_differences() -> None:
    masked = MaskedModel(tiny_model("llama").double())
    tokens = torch.randint(3, 97, (1, 8), generator=torch.Generator().manual_seed(0))
    gates = torch.ones(masked.space.num_channels, dtype=torch.double)

    def loss(values: Tensor) -> Tensor:
        logits = masked.logits(tokens[:, :-1], values)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    leaf = gates.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    for channel in (0, 17, 95):
        step = torch.zeros_like(gates)
        step[channel] = 1e-3
        slope = (loss(gates + step) - loss(gates - step)) / 2e-3
        assert leaf.grad[channel].item() == pytest.approx(slope.item(), rel=1e-3, abs=1e-6)


def test_topk_forward_is_hard_and_its_gradient_is_the_gates() -> None:
    method = TopK(perturbed=0)
    method.prepare(MaskedModel(tiny_model("llama")), 0.5, torch.Generator().manual_seed(0))
    gates = method.gates(1.0, 0.0, 1)
    assert sorted(set(gates.tolist())) == [0.0, 1.0]
    assert gates.sum() == 48
    (gates * torch.arange(96)).sum().backward()
    assert torch.equal(method._scores.grad, torch.arange(96.0))


def test_topk_shows_every_sequence_other_kept_units_at_a_random_gate() -> None:
    method = TopK(perturbed=0.25)
    method.prepare(MaskedModel(tiny_model("llama")), 0.5, torch.Generator().manual_seed(0))
    gates = method.gates(1.0, 0.0, 400)  # [B, U]
    keep = method.hard_mask()
    assert torch.equal(method.switched_on(gates), keep)
    assert not gates[:, ~keep].any()
    between = gates[:, keep] < 1
    assert between.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert gates[:, keep][between].mean().item() == pytest.approx(0.5, abs=0.01)
    assert between.float().mean(0).min() > 0.15
    gates.sum().backward()
    assert torch.equal(method._scores.grad, torch.full((96,), 400.0))


def test_scores_of_the_default_method_count_from_the_threshold() -> None:
    method = TopK()
    method.prepare(MaskedModel(tiny_model("llama")), 0.5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        method._scores += 3
    method.gates(0.5, 0.0, 1)
    scores = method.scores()
    assert torch.equal(scores > 0, method.hard_mask(0.5))


@pytest.mark.parametrize("make", SCHEDULES)
@given(progress=st.floats(0, 1), later=st.floats(0, 1))
def test_schedules_start_at_nothing_and_end_at_the_target(make: Any, progress: float, later: float) -> None:
    schedule = make(begin=0.1, end=0.9)
    assert schedule(0.0) == schedule(0.1) == 0
    assert schedule(0.9) == schedule(1.0) == 1
    low, high = sorted([progress, later])
    assert 0 <= schedule(low) <= schedule(high) + 1e-12 <= 1 + 1e-12


def test_schedule_values() -> None:
    assert ConstantSchedule()(0.0) == 1
    assert LinearSchedule()(0.25) == 0.25
    assert CubicSchedule()(0.5) == 0.875
    assert CosineSchedule()(0.5) == pytest.approx(0.5)
    assert ExponentialSchedule(rate=2)(0.5) == pytest.approx((1 - 2.718281828**-1) / (1 - 2.718281828**-2))


def test_learning_rates_rise_stay_and_fall() -> None:
    assert [warm_up_and_decay(x, 0.2, 0.5) for x in (0, 0.1, 0.2, 0.5, 0.75, 1)] == pytest.approx(
        [0, 0.5, 1, 1, 0.5, 0]
    )
    assert warm_up_and_decay(0, 0.2, 0.2, 0.1) == warm_up_and_decay(1, 0.2, 0.2, 0.1) == 0.1


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: LinearSchedule(begin=0.5, end=0.5),
        lambda: LinearSchedule(end=1.5),
        lambda: ExponentialSchedule(rate=0.0),
        lambda: AnnealedSigmoid(multiplier=-1.0),
        lambda: AnnealedSigmoid(highest_slope=0.5),
        lambda: LeanK(l1=-1.0),
        lambda: TopK(key_sparsity=1.5),
        lambda: TopK(perturbed=1.5),
        lambda: MaskTrainer(batch_size=0),
        lambda: Recipe(method=TopK(), steps=0),
        lambda: Recipe(method=TopK(), objective=TOP1),
    ],
)
def test_impossible_settings_are_one_line(attempt: Callable[[], object]) -> None:
    with pytest.raises(UserError) as error:
        attempt()
    assert "\n" not in str(error.value)


def test_normalised_sgd_does_not_see_the_scale_of_the_loss() -> None:
    results = []
    for scale in (1.0, 1e-6):
        weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        optimizer = NormalizedSGD([weight], lr=0.1, momentum=0.5)
        for _ in range(3):
            (scale * (weight * torch.tensor([1.0, -2.0, 0.5])).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(weight.detach())
    torch.testing.assert_close(results[0], results[1])
    assert torch.equal((results[0] - torch.tensor([1.0, 2.0, 3.0])).sign(), torch.tensor([-1.0, 1.0, -1.0]))


def test_weight_decay_forgets_and_does_not_touch_the_gradient() -> None:
    weight = torch.tensor([4.0, -4.0], requires_grad=True)
    optimizer = NormalizedSGD([weight], lr=0.1, momentum=0.0, weight_decay=2.5)
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([2.9, -3.1]))


def test_nll_is_the_mean_over_tokens() -> None:
    logits, targets = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    picked = logits.log_softmax(-1).gather(-1, targets[..., None])
    batch = Batch(targets, answers=targets)
    assert NLL.mean(logits, batch, None).item() == pytest.approx(-picked.mean().item(), rel=1e-5)
    assert NLL.per_sequence(logits, batch, None).tolist() == pytest.approx((-picked).mean((1, 2)).tolist())


def test_kl_is_zero_only_for_the_same_distribution() -> None:
    logits, batch = torch.randn(2, 3, 7), Batch(torch.zeros(2, 3, dtype=torch.long))
    assert KL.mean(logits, batch, logits).item() == 0
    shifted = KL.mean(logits + 5, batch, logits).item()
    assert shifted == pytest.approx(0, abs=1e-6)
    other = torch.randn(2, 3, 7)
    expected = torch.nn.functional.kl_div(
        other.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="sum"
    )
    assert KL.mean(other, batch, logits).item() == pytest.approx(expected.item() / 6, rel=1e-5)


@pytest.mark.parametrize("capacity", [0, 1 << 20])
def test_dense_outputs_are_the_same_kept_or_computed_again(capacity: int) -> None:
    masked = MaskedModel(tiny_model("gpt2"))
    batch = Batch.of_rows(torch.randint(3, 97, (5, 9)))
    dense = DenseOutputs(masked, batch, capacity)
    for chosen in (torch.tensor([0, 3]), torch.tensor([3, 4]), torch.tensor([0, 4])):
        torch.testing.assert_close(dense(chosen), masked.hidden(batch[chosen]))
    assert dense.kept_bytes == (5 * 8 * 32 * 4 if capacity else 0)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
def test_importance_keeps_the_order(scores: list[float]) -> None:
    values = torch.tensor(scores)
    scaled = importance(values)
    assert 0 <= scaled.min() <= scaled.max() <= 1
    order = torch.argsort(values, stable=True)
    assert (scaled[order].diff() >= 0).all()
