"""Batches, ablations, metrics and the evaluator: what a mask does, sequence by sequence and position by position."""

import copy
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any

import pytest
import torch
from architectures import tiny_model
from parts import ABLATIONS, METRICS, Fills, Formula, named
from tiers import rest_slow
from torch import Tensor

from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.masking import ZERO, Ablation, MaskedModel, MeanAblation
from mechint.masking.ablation import Fill, channel_means
from mechint.masking.prompt_ablations import states_of
from mechint.metrics import KL, NLL, TOP1, Evaluator, Metric, chunked, evaluation, measure
from mechint.metrics.gradients import gate_gradient, sequence_gradients
from mechint.metrics.metric import Asked

ROWS = torch.randint(3, 97, (7, 13), generator=torch.Generator().manual_seed(0))
WRONG = torch.randint(3, 97, (7, 12), generator=torch.Generator().manual_seed(4))
BATCH = replace(Batch.of_rows(ROWS), foils=WRONG, paired=ROWS[:, :-1].roll(1, 0))
LENGTHS = [5, 12, 1, 9]
DIFFERENTIABLE = attrgetter("differentiable")
# One architecture of each kind of attention: learned positions, rotated and grouped keys, windows and capped logits.
NAMES = ["gpt2", "llama", "gemma2"]


def masks(masked: MaskedModel, count: int, seed: int = 0) -> list[Tensor]:
    """Random hard masks, bool [N]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(masked.space.num_channels, generator=generator) > 0.4 for _ in range(count)]


def some_positions(seed: int = 2) -> Tensor:
    """Positions that count, at least one of every sequence, of some sequences fewer than of others."""
    counted = (
        torch.rand(7, 12, generator=torch.Generator().manual_seed(seed))
        > torch.linspace(0.1, 0.9, 7)[:, None]
    )
    counted[:, 3] = True
    return counted


# --- batches


def full_batch() -> Batch:
    """Every field, each with other numbers."""
    numbers = torch.arange(6 * 4).view(6, 4)
    return Batch(
        tokens=numbers,
        answers=numbers + 100,
        counted=numbers % 3 > 0,
        attention_mask=numbers % 5 > 0,
        foils=numbers + 200,
        paired=numbers + 300,
        families=numbers[:, 0] + 400,
    )


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        (slice(1, 4), [1, 2, 3]),
        (slice(-2, None), [4, 5]),
        (torch.tensor([5, 0, 5]), [5, 0, 5]),
        (slice(0, 0), []),
    ],
)
def test_a_part_of_a_batch_has_every_field_of_its_sequences(chosen: Any, numbers: list[int]) -> None:
    batch = full_batch()
    part = batch[chosen]
    assert len(part) == len(numbers)
    for name, whole in vars(batch).items():
        assert torch.equal(getattr(part, name), whole[numbers]), name
    assert batch[:2][torch.tensor([1])].tokens.tolist() == [[4, 5, 6, 7]]


def test_what_a_batch_lacks_its_parts_lack_too() -> None:
    part = Batch(torch.zeros(3, 4, dtype=torch.long))[1:]
    assert vars(part).keys() == vars(full_batch()).keys()
    assert [name for name, value in vars(part).items() if value is not None] == ["tokens"]


def test_rows_become_inputs_and_answers_and_rows_again() -> None:
    assert torch.equal(BATCH.tokens, ROWS[:, :-1])
    assert torch.equal(BATCH.answers, ROWS[:, 1:])  # type: ignore[arg-type]
    assert torch.equal(BATCH.rows(), ROWS)
    assert (len(BATCH), BATCH.length, BATCH.size) == (7, 12, 84)
    assert BATCH.positions.tolist() == [12] * 7


def test_only_counted_positions_count() -> None:
    counted = torch.tensor([[True, False, True], [False, True, False]])
    batch = Batch(torch.zeros(2, 3, dtype=torch.long), counted=counted)
    assert batch.positions.tolist() == [2, 1]
    assert (batch.size, batch.length) == (3, 3)
    values = torch.tensor([[1.0, 50.0, 3.0], [50.0, 7.0, 50.0]])
    assert batch.mean(values).tolist() == [2, 7]
    assert batch.mean(values.double()).dtype == torch.double
    assert Batch(batch.tokens).mean(values).tolist() == [18, pytest.approx(107 / 3)]


# --- the evaluator


def by_hand(
    masked: MaskedModel, batch: Batch, gates: Tensor | None, ablation: Ablation = ZERO
) -> dict[str, Tensor]:
    """Every metric at every position [B, T], from whole logits of one sequence at a time.

    Removed channels are put in by hooks on the projections of a GPT-2, and not by anything of mechint.
    """
    model, space = masked.model, masked.space
    ones = torch.ones(space.num_channels) if gates is None else gates.float()

    def replaced(position: int, fills: list[Fill] | None) -> Callable[..., Tensor]:
        def hook(_: object, __: object, output: Tensor) -> Tensor:
            query, *parts = output.split(32, dim=-1)
            for number, kind in enumerate(("k", "v")):
                gate = space.view(ones, position, kind).flatten()  # type: ignore[arg-type]
                parts[number] = parts[number] * gate
                if fills is not None:
                    fill = fills[2 * position + number].detach()  # [G, C], or [1, G, T, C] where it differs
                    put = fill.flatten() if fill.ndim == 2 else fill.transpose(1, 2).flatten(2)
                    parts[number] = parts[number] + put * (1 - gate)
            return torch.cat([query, *parts], -1)

        return hook

    found: dict[str, list[Tensor]] = {metric.name: [] for metric in METRICS}
    for number in range(len(batch)):
        one = batch[number : number + 1]
        tokens, right, wrong = one.tokens[0], one.answers[0], one.foils[0]  # type: ignore[index]
        fills = ablation.fills(masked, one)
        dense = model(input_ids=tokens[None], use_cache=False).logits[0].double().log_softmax(-1)
        handles = [
            layer.attn.c_attn.register_forward_hook(replaced(position, fills))
            for position, layer in enumerate(model.transformer.h)
        ]
        logits = model(input_ids=tokens[None], use_cache=False).logits[0].double().log_softmax(-1)
        for handle in handles:
            handle.remove()
        for metric, formula in METRICS.items():
            found[metric.name].append(formula(logits, dense, right, wrong))
    return {name: torch.stack(values) for name, values in found.items()}


@pytest.mark.parametrize("ablation", rest_slow(ABLATIONS, list(ABLATIONS)[:2]), ids=named)
@pytest.mark.parametrize("counted", [None, some_positions()], ids=["all", "some"])
def test_every_sequence_has_the_value_of_a_plain_hooked_model(
    ablation: Ablation, counted: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 4 * 97 * 5)  # chunks that end inside of sequences
    masked = MaskedModel(tiny_model("gpt2"))
    batch = replace(BATCH, counted=counted)
    ablation = ablation.fit(masked, BATCH, 3)
    variants = [None, *masks(masked, 2), torch.rand(masked.space.num_channels)]
    evaluator = Evaluator(masked, batch, ablation, at_once=3)
    got = evaluator(variants, list(METRICS))
    assert got.shape == (4, len(METRICS), 7)
    weights = torch.ones(7, 12) if counted is None else counted.float()
    for gates, values in zip(variants, got, strict=True):
        every = by_hand(masked, batch, gates, ablation)
        for metric, found in zip(METRICS, values, strict=True):
            expected = every[metric.name]
            by_sequence = (expected * weights).sum(1) / weights.sum(1)
            torch.testing.assert_close(found, by_sequence, rtol=1e-4, atol=2e-5)
            over_all = ((expected * weights).sum() / weights.sum()).item()
            assert evaluator.over_positions(found).item() == pytest.approx(over_all, rel=1e-4, abs=2e-5)
            assert evaluator.mean(gates, metric) == pytest.approx(over_all, rel=1e-4, abs=2e-5)
    assert got[0, 0].tolist() == [0] * 7  # KL of the dense model from itself
    assert got[0, 2].tolist() == [1] * 7
    assert got[1:, 0].min() > 1e-3


@pytest.mark.parametrize("metric", METRICS, ids=named)
def test_a_copy_of_a_metric_is_its_equal(metric: Metric) -> None:
    """What was measured of the dense and empty model with one is not measured again for the other."""
    assert copy.deepcopy(metric) == metric
    assert {copy.deepcopy(metric): "measured"}[metric] == "measured"
    assert sum(metric == other for other in METRICS) == 1


def test_any_metric_is_measured_beside_loss_and_kl() -> None:
    masked, batch = MaskedModel(tiny_model("llama")), replace(BATCH, counted=some_positions())
    variants = {"dense": None, "masked": masks(masked, 1)[0]}
    for metric in METRICS:
        evaluator = Evaluator(masked, batch, at_once=2)
        found = measure(evaluator, variants, num_bytes=None, objective=metric)
        assert found.metrics["masked"]["loss"] == pytest.approx(evaluator.mean(variants["masked"], NLL))
        for name, gates in variants.items():
            assert found.metrics[name]["objective"] == pytest.approx(evaluator.mean(gates, metric), abs=1e-7)
            assert found.metrics[name]["objective_se"] >= 0
        assert list(found.sequences) == ["loss", "kl", "top1_agreement"]


def test_measured_numbers_are_over_positions_and_not_over_sequences() -> None:
    masked, counted = MaskedModel(tiny_model("llama")), some_positions()
    (keep,) = masks(masked, 1)
    batch = replace(BATCH, counted=counted)
    found = measure(Evaluator(masked, batch, at_once=2), {"dense": None, "masked": keep}, num_bytes=70)
    log = masked.logits(BATCH, keep.float()).log_softmax(-1)
    nll = -log.gather(-1, ROWS[:, 1:, None]).squeeze(-1)
    metrics = found.metrics["masked"]
    assert metrics["loss"] == pytest.approx(nll[counted].mean().item(), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(
        nll[counted].sum().item() / 70 / torch.tensor(2.0).log().item()
    )
    assert found.sequences["loss"][1].mean().item() != pytest.approx(metrics["loss"], rel=1e-4)
    weighted = (found.sequences["loss"][1] * batch.positions).sum() / batch.positions.sum()
    assert weighted.item() == pytest.approx(metrics["loss"], rel=1e-6)


@pytest.mark.parametrize("name", rest_slow(NAMES, ["llama"]))
@pytest.mark.parametrize("dense_bytes", rest_slow([0, 2**20], [2**20]))
def test_many_masks_at_once_are_as_one_at_a_time(name: str, dense_bytes: int) -> None:
    masked = MaskedModel(tiny_model(name))
    variants = [None, *masks(masked, evaluation.MASKS_AT_ONCE + 2), None]  # more than share a pass
    together = Evaluator(masked, BATCH, at_once=3, dense_bytes=dense_bytes)
    found = together(variants, list(METRICS))
    assert torch.equal(together(variants, list(METRICS)), found)
    assert together.tokens == 2 * (len(variants) - 2) * BATCH.size
    for gates, values in zip(variants, found, strict=True):
        alone = Evaluator(masked, BATCH, at_once=3)([gates], list(METRICS))
        torch.testing.assert_close(values, alone[0], rtol=1e-6, atol=1e-7)
    for place, metric in enumerate(METRICS):
        alone = Evaluator(masked, BATCH, at_once=3)(variants[:2], [metric])
        torch.testing.assert_close(found[:2, place], alone[:, 0], rtol=1e-6, atol=1e-7)
    one_by_one = Evaluator(masked, BATCH, at_once=1)(variants, list(METRICS))
    torch.testing.assert_close(found, one_by_one, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_dense_model_is_computed_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = MaskedModel(tiny_model("llama"))
    passes: list[bool] = []
    hidden = masked.hidden
    monkeypatch.setattr(
        masked,
        "hidden",
        lambda batch, gates=None, *rest: (passes.append(gates is None), hidden(batch, gates, *rest))[1],
    )
    Evaluator(masked, BATCH, at_once=7)(masks(masked, 3), [NLL])
    assert passes == [False] * 3
    passes.clear()
    Evaluator(masked, BATCH, at_once=7)(masks(masked, 6), [KL, TOP1])
    assert passes == [True] + [False] * 6


# --- padding


def padded(left: bool, rows: Tensor = ROWS) -> Batch:
    """Sequences of LENGTHS among tokens that mean nothing, with their padding on one side."""
    size = max(LENGTHS) + 2
    tokens = torch.randint(3, 97, (len(LENGTHS), size), generator=torch.Generator().manual_seed(9 + left))
    answers, foils, mask = tokens.clone(), tokens.clone(), torch.zeros_like(tokens, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        here = slice(size - length, size) if left else slice(0, length)
        tokens[row, here], answers[row, here] = rows[row, :length], rows[row, 1 : length + 1]
        foils[row, here], mask[row, here] = WRONG[row, :length], True
    return Batch(tokens, answers, counted=mask, attention_mask=mask, foils=foils)


def alone(number: int) -> Batch:
    """One of these sequences without padding."""
    row = Batch.of_rows(ROWS[number : number + 1, : LENGTHS[number] + 1])
    return replace(row, foils=WRONG[number : number + 1, : LENGTHS[number]])


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", [*NAMES, "opt", "qwen3", "mistral"])
def test_padding_on_either_side_changes_no_number(name: str, left: bool) -> None:
    masked = MaskedModel(tiny_model(name))
    variants = [None, *masks(masked, 2), torch.zeros(masked.space.num_channels)]
    evaluator = Evaluator(masked, padded(left), at_once=3)
    got = evaluator(variants, list(METRICS))
    assert got.isfinite().all()
    gates = variants[1].float()  # type: ignore[union-attr]
    slopes = evaluator.gradients(gates, KL)
    assert slopes.isfinite().all()
    for number in range(len(LENGTHS)):
        single = Evaluator(masked, alone(number))
        torch.testing.assert_close(got[:, :, [number]], single(variants, list(METRICS)), rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(slopes[number], single.gradients(gates, KL)[0], rtol=1e-3, atol=1e-5)
    assert evaluator.mean(variants[1], NLL) == pytest.approx(
        sum(length * value for length, value in zip(LENGTHS, got[1, 1].tolist(), strict=True)) / sum(LENGTHS)
    )


# --- gradients


@pytest.mark.parametrize(("metric", "formula"), METRICS.items(), ids=map(named, METRICS))
def test_a_metric_and_its_gradient_are_those_of_its_formula(metric: Metric, formula: Formula) -> None:
    logits, dense = torch.randn(2, 11, 97, generator=torch.Generator().manual_seed(0))
    right, wrong = torch.randint(97, (2, 11), generator=torch.Generator().manual_seed(1))
    given = logits.clone(), dense.clone()
    leaf = logits.double().requires_grad_()
    expected = formula(leaf.log_softmax(-1), dense.double().log_softmax(-1), right, wrong)
    values, slope = metric.at(*given, Asked(right, wrong), metric.differentiable)
    torch.testing.assert_close(values.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(given[0], logits), "logits are not to be changed"
    assert torch.equal(given[1], dense)
    if metric.differentiable:
        assert slope is not None
        expected.sum().backward()
        torch.testing.assert_close(slope.double(), leaf.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", rest_slow(filter(DIFFERENTIABLE, METRICS), [KL, NLL]), ids=named)
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("counted", [None, some_positions()], ids=["all", "some"])
@pytest.mark.parametrize("at_once", [1, 3, 6])
def test_a_gradient_in_parts_is_that_of_the_whole(
    metric: Metric, per_sequence: bool, counted: Tensor | None, at_once: int
) -> None:
    masked = MaskedModel(tiny_model("llama"))
    batch = replace(BATCH, counted=counted)
    shape = (7, 96) if per_sequence else (96,)
    gates = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    whole_loss, whole = gate_gradient(masked, batch, gates, metric)
    loss, slope = gate_gradient(masked, batch, gates, metric, at_once=at_once)
    assert slope.shape == gates.shape
    assert loss.item() == pytest.approx(whole_loss.item(), rel=1e-5)
    torch.testing.assert_close(slope, whole, rtol=1e-3, atol=1e-6)
    leaf = gates.clone().requires_grad_()
    metric.mean(masked.logits(batch, leaf), batch, masked.logits(batch)).backward()
    torch.testing.assert_close(slope, leaf.grad, rtol=1e-3, atol=1e-6)
    assert not gates.requires_grad
    asked: list[list[int]] = []

    def dense(numbers: Tensor) -> Tensor:
        asked.append(numbers.tolist())
        return masked.hidden(batch[numbers])

    given, _ = gate_gradient(masked, batch, gates, metric, dense=dense, at_once=at_once)
    assert given.item() == pytest.approx(whole_loss.item(), rel=1e-5)
    expected = [list(range(start, min(start + at_once, 7))) for start in range(0, 7, at_once)]
    assert asked == (expected if metric.needs_dense else [])


def test_every_sequence_has_its_own_gradient() -> None:
    masked = MaskedModel(tiny_model("llama"))
    batch = Batch(BATCH.tokens, BATCH.answers, some_positions())
    (keep,) = masks(masked, 1)
    each = sequence_gradients(masked, batch, keep.float(), NLL)
    whole = gate_gradient(masked, batch, keep.float(), NLL)[1]
    torch.testing.assert_close(each.mean(0), whole, rtol=1e-3, atol=1e-6)
    for number in range(len(batch)):
        one = batch[number : number + 1]
        torch.testing.assert_close(
            each[number], gate_gradient(masked, one, keep.float(), NLL)[1], rtol=1e-3, atol=1e-6
        )
    in_parts = Evaluator(masked, batch, at_once=2)
    torch.testing.assert_close(in_parts.gradients(keep.float(), NLL), each, rtol=1e-3, atol=1e-6)
    assert in_parts.tokens == batch.tokens.numel()


# --- ablations


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_padding_does_not_count_in_means(name: str, left: bool) -> None:
    masked = MaskedModel(tiny_model(name))
    sums = sum(length * channel_means(masked, alone(number), 1) for number, length in enumerate(LENGTHS))
    expected = sums / sum(LENGTHS)
    fitted = MeanAblation().fit(masked, padded(left), 3)
    torch.testing.assert_close(fitted.constant(masked), expected, rtol=1e-4, atol=1e-5)


def test_means_are_fitted_once_and_tell_themselves_apart() -> None:
    masked = MaskedModel(tiny_model("llama"))
    plain = MeanAblation()
    first, second = plain.fit(masked, BATCH, 3), plain.fit(masked, BATCH[:2], 3)
    assert first.identity == plain.fit(masked, BATCH, 3).identity
    assert len({ZERO.identity, plain.identity, first.identity, second.identity}) == 4
    with pytest.raises(AssertionError, match="measured by `fit`"):
        plain.constant(masked)
    assert ZERO.fit(masked, BATCH, 3) is ZERO
    assert ZERO.constant(masked) is None
    fills = first.fills(masked, BATCH)
    assert torch.equal(torch.cat([fill.flatten() for fill in fills]), first.constant(masked))


@pytest.mark.parametrize(("ablation", "formula"), ABLATIONS.items(), ids=map(named, ABLATIONS))
@pytest.mark.parametrize("name", rest_slow(NAMES, ["gpt2"]))
def test_an_ablation_puts_in_what_its_formula_says(ablation: Ablation, formula: Fills, name: str) -> None:
    masked = MaskedModel(tiny_model(name))
    assert BATCH.paired is not None
    states = zip(states_of(masked, BATCH), states_of(masked, Batch(BATCH.paired)), strict=True)
    found = ablation.fit(masked, BATCH, 3).fills(masked, BATCH)
    for place, (calibration, prompts) in enumerate(states):
        for row, paired in enumerate(prompts):
            expected = formula(calibration, paired).expand_as(paired)
            fill = torch.zeros_like(paired) if found is None else found[place]
            if fill.ndim == 4:
                fill = fill[row if len(fill) > 1 else 0]
            elif found is not None:
                fill = fill.unsqueeze(1)  # [G, C]
            torch.testing.assert_close(fill.expand_as(paired), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=named)
def test_ablations_are_told_apart_by_what_they_put_in(ablation: Ablation) -> None:
    """What was measured of one is used again for its equals."""
    masked = MaskedModel(tiny_model("llama"))
    first, again, other = (ablation.fit(masked, batch, 3) for batch in (BATCH, BATCH, BATCH[:2]))
    assert type(first) is type(ablation)
    assert first.identity == again.identity
    assert len({first.identity, again.identity}) == 1
    here, there = first.fills(masked, BATCH), other.fills(masked, BATCH)
    assert (here is None) == (there is None)
    equal = here is None or there is None or all(map(torch.equal, here, there))
    assert (first.identity == other.identity) == equal
    if here is None:
        assert first.constant(masked) is None
    elif any(fill.ndim == 4 for fill in here):  # another at every position
        with pytest.raises(UserError):
            first.constant(masked)
    else:
        constant = first.constant(masked)
        assert constant is not None
        assert torch.equal(constant, torch.cat([fill.flatten() for fill in here]))


class OfAnother(Ablation):
    """Removed channels become what they are in the paired prompt."""

    name = "of_another"

    def constant(self, masked: MaskedModel) -> Tensor:
        raise UserError("it depends on the prompt")

    def fills(self, masked: MaskedModel, batch: Batch) -> list[Fill]:
        found: dict[int, tuple[Tensor, Tensor]] = {}

        def record(position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
            found[position] = key, value

        assert batch.paired is not None
        with masked.recording(record), torch.no_grad():
            masked.model(input_ids=batch.paired, use_cache=False)
        return [states for position in sorted(found) for states in found[position]]


@pytest.mark.parametrize("name", NAMES)
def test_an_ablation_may_depend_on_every_sequence(name: str) -> None:
    """Without any channel of its own, attention is wholly that of the paired prompt."""
    masked = MaskedModel(tiny_model(name))
    batch = Batch(BATCH.tokens, BATCH.answers, paired=BATCH.tokens.roll(1, 0))
    nothing = torch.zeros(masked.space.num_channels)
    evaluator = Evaluator(masked, batch, OfAnother(), at_once=3)
    same = Evaluator(masked, Batch(batch.tokens, batch.answers, paired=batch.tokens), OfAnother(), at_once=3)
    assert same.mean(nothing, KL) == pytest.approx(0, abs=1e-5)
    found = evaluator([nothing, *masks(masked, 1)], [KL])
    assert found[0].min() > 1e-2
    for number in range(len(batch)):
        single = Evaluator(masked, batch[number : number + 1], OfAnother())
        torch.testing.assert_close(
            found[:, :, [number]], single([nothing, *masks(masked, 1)], [KL]), rtol=1e-4, atol=1e-5
        )


# --- errors


def test_the_bootstrap_draws_documents_whole_where_there_are_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    documents = torch.arange(15).repeat_interleave(4)
    own = torch.randn(15, generator=generator).double()
    values, positions = (
        own[documents],
        torch.full((60,), 8.0).double(),
    )  # sequences of a document are the same
    together, alone = (
        float(evaluation.resampled(values, positions, chosen).std()) for chosen in (documents, None)
    )
    assert together == pytest.approx(float(own.std(correction=0)) / 15**0.5, rel=0.1)
    assert alone == pytest.approx(together / 2, rel=0.1)
    few = torch.arange(5).repeat_interleave(12)  # too few to know anything from
    assert torch.equal(evaluation.resampled(values, positions, few), evaluation.resampled(values, positions))
    assert torch.equal(
        evaluation.resampled(values, positions, torch.arange(60)), evaluation.resampled(values, positions)
    )
    assert evaluation.resampled(values[:1], positions[:1]).isnan().all()


@pytest.mark.parametrize("count", [2, 5, 12])
def test_prompts_that_are_twins_have_the_interval_of_single_ones(count: int) -> None:
    values = torch.randn(3, count, generator=torch.Generator().manual_seed(0)).double()
    twins, families = values.repeat_interleave(2, 1), torch.arange(count).repeat_interleave(2)
    single = evaluation.resampled(values, torch.ones(count).double())
    torch.testing.assert_close(evaluation.resampled(twins, torch.ones(2 * count).double(), families), single)
    assert evaluation.resampled(twins, torch.ones(2 * count).double()).std() < 0.9 * single.std()
