"""Mask methods, schedules, objectives and the trainer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from architectures import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mechint.errors import UserError
from mechint.learning import (
    AnnealedSigmoid,
    ConstantSchedule,
    CosineSchedule,
    CubicSchedule,
    ExponentialSchedule,
    HardConcrete,
    KlObjective,
    LinearSchedule,
    MaskTrainer,
    NllObjective,
    NormalizedSGD,
    TopK,
)
from mechint.learning.dense_outputs import DenseOutputs
from mechint.learning.method import MaskMethod, importance
from mechint.learning.schedules import Temperature
from mechint.learning.trainer import Training
from mechint.masking import MaskedModel

METHODS: list[tuple[type[MaskMethod], Callable[..., torch.optim.Optimizer]]] = [
    (partial(TopK, finishing_trials=0), partial(NormalizedSGD, lr=0.1)),
    (HardConcrete, partial(torch.optim.Adam, lr=0.1)),
    (AnnealedSigmoid, partial(torch.optim.Adam, lr=0.1)),
]
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
        rows,
        method,
        KlObjective(),
        make_optimizer,
        CubicSchedule(end=0.8),
        steps,
        generator,
        lambda *_: None,
    )
    return method.hard_mask(), training


@pytest.mark.parametrize(("method", "optimizer"), METHODS)
def test_a_method_starts_dense_ends_exact_and_repeats(method: type[MaskMethod], optimizer: Any) -> None:
    keep, training = train(method(), optimizer)
    again, repeated = train(method(), optimizer)
    assert int(keep.sum()) == round(0.4 * 96)
    assert torch.equal(keep, again)
    assert training.history == repeated.history
    first, last = training.history[0], training.history[-1]
    assert first["sparsity"] == first["scheduled_sparsity"] == 0
    assert last["scheduled_sparsity"] == pytest.approx(0.6)
    if not isinstance(
        method(), HardConcrete | AnnealedSigmoid
    ):  # the others approach the count by a penalty, which takes more steps
        assert last["sparsity"] == pytest.approx(1 - int(keep.sum()) / 96)
    assert training.tokens == 6 * 2 * 16


def test_the_default_method_starts_with_no_loss_at_all() -> None:
    _, training = train(TopK(finishing_trials=0), partial(NormalizedSGD, lr=0.1))
    assert training.history[0]["loss"] == 0


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
    method = TopK()
    method.prepare(MaskedModel(tiny_model("llama")), 0.5, torch.Generator().manual_seed(0))
    gates = method.gates(1.0, 0.0)
    assert sorted(set(gates.tolist())) == [0.0, 1.0]
    assert gates.sum() == 48
    (gates * torch.arange(96)).sum().backward()
    assert torch.equal(method._scores.grad, torch.arange(96.0))


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


def test_temperatures() -> None:
    assert Temperature("constant", 3, 1)(0.7) == 3
    assert Temperature("linear", 3, 1)(0.5) == 2
    assert Temperature("exponential", 4, 1)(0.5) == pytest.approx(2)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: LinearSchedule(begin=0.5, end=0.5),
        lambda: LinearSchedule(end=1.5),
        lambda: ExponentialSchedule(rate=0.0),
        lambda: Temperature("sudden", 1, 1),  # type: ignore[arg-type]
        lambda: AnnealedSigmoid(temperature_start=0.0),
        lambda: TopK(ablation="noise"),  # type: ignore[arg-type]
        lambda: TopK(key_sparsity=1.5),
        lambda: MaskTrainer(batch_size=0),
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


def test_nll_is_the_mean_over_tokens() -> None:
    logits, targets = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    picked = logits.log_softmax(-1).gather(-1, targets[..., None])
    assert NllObjective()(logits, targets, None).item() == pytest.approx(-picked.mean().item(), rel=1e-5)


def test_kl_is_zero_only_for_the_same_distribution() -> None:
    logits = torch.randn(2, 3, 7)
    assert KlObjective()(logits, logits.argmax(-1), logits).item() == 0
    shifted = KlObjective()(logits + 5, logits.argmax(-1), logits).item()
    assert shifted == pytest.approx(0, abs=1e-6)
    other = torch.randn(2, 3, 7)
    expected = torch.nn.functional.kl_div(
        other.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="sum"
    )
    assert KlObjective()(other, logits.argmax(-1), logits).item() == pytest.approx(
        expected.item() / 6, rel=1e-5
    )


@pytest.mark.parametrize("capacity", [0, 1 << 20])
def test_dense_outputs_are_the_same_kept_or_computed_again(capacity: int) -> None:
    masked = MaskedModel(tiny_model("gpt2"))
    rows = torch.randint(3, 97, (5, 9))
    dense = DenseOutputs(masked, rows, capacity)
    for chosen in (torch.tensor([0, 3]), torch.tensor([3, 4]), torch.tensor([0, 4])):
        torch.testing.assert_close(dense(chosen), masked.logits(rows[chosen, :-1]))
    assert len(dense._kept) == (3 if capacity else 0)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
def test_importance_keeps_the_order(scores: list[float]) -> None:
    values = torch.tensor(scores)
    scaled = importance(values)
    assert 0 <= scaled.min() <= scaled.max() <= 1
    order = torch.argsort(values, stable=True)
    assert (scaled[order].diff() >= 0).all()
