"""Scores of circuits, gates, ablations that know prompts, and a whole run on a task."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from architectures import tiny_model

from mechint import analyze, compare_circuits
from mechint.analysis.between import one_directory_each
from mechint.analysis.chance import Controls, activation_norms
from mechint.analysis.stability import Stability
from mechint.circuits import CircuitStudy, scores
from mechint.circuits.gates import Gate, judge_gates, parse_gates
from mechint.circuits.study import _Bench, fewest_within, learn_constants
from mechint.comparison.circuits import circuits_lines
from mechint.data.batch import NO_TOKEN, Batch
from mechint.data.byte_tokenizer import byte_tokenizer
from mechint.data.tasks import GenderedPronoun, InductionTask
from mechint.data.token_data import Task, TokenData
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.masking import (
    CounterfactualAblation,
    MaskedModel,
    MeanAblation,
    MeanPerPositionAblation,
    OptimalAblation,
    make_units,
)
from mechint.masking.ablation import ZERO
from mechint.masking.gating import gated
from mechint.masking.random_masks import matched_random_masks, places
from mechint.methods import Fisher, LearnedBasis, PrincipalBasis, TopK
from mechint.metrics import ACCURACY, KL, LOGIT_DIFF, NLL, AccuracySurrogate, Evaluator, LogitDifferenceGap
from mechint.metrics.gradients import gate_gradient
from mechint.reporting import CircuitDiagram, CircuitFigure, CircuitHeads, CircuitPatterns, Visualizer
from mechint.reporting.closing import summary_lines
from mechint.reporting.redrawing import redraw_run
from mechint.results.circuit import CircuitInfo, OverSeeds, TaskScores
from mechint.results.diagram import CircuitDrawing
from mechint.results.result import Result, Verdict
from mechint.results.section import Section

# --- scores


def test_areas_are_those_of_the_benchmark() -> None:
    """Numbers worked out from its formula by other means: trapezoids over k, of f and of |1 - f|."""
    shares = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    faithfulness = torch.tensor([0.0, -0.1, 0.1, 0.3, 0.5, 0.8, 1.1, 1.3, 1.05, 1.0], dtype=torch.double)
    assert float(scores.cpr(shares, faithfulness)) == pytest.approx(1.05695, abs=1e-9)
    assert float(scores.cmd(shares, faithfulness)) == pytest.approx(0.11705, abs=1e-9)
    ones = torch.ones(10, dtype=torch.double)
    assert float(scores.cpr(shares, ones)) == pytest.approx(0.999, abs=1e-12)
    assert float(scores.cmd(shares, ones)) == 0
    assert float(scores.cpr(shares, ones, log=True)) == pytest.approx(1, abs=1e-12)
    ramp = torch.tensor([math.log(share) for share in shares], dtype=torch.double)
    assert float(scores.cpr(shares, ramp, log=True)) == pytest.approx(math.log(0.001) / 2, abs=1e-9)


def test_counts_are_rounded_down_and_float_noise_does_not_decide() -> None:
    assert [scores.kept_at(share, 11_520) for share in (0.001, 0.002, 0.1, 1.0)] == [11, 23, 1152, 11_520]
    assert scores.kept_at(0.29, 100) == 29  # 0.29 * 100 is a little less than 29


def test_faithfulness_is_a_ratio_of_means_and_may_leave_the_unit_interval() -> None:
    dense, empty = torch.tensor(4.0), torch.tensor(-1.0)
    found = scores.faithfulness_of(dense, empty, torch.tensor([4.0, -1.0, 1.5, 6.5, -2.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.5, 1.5, -0.2]))


def test_the_smallest_circuit_that_does_is_one_from_which_on_all_larger_ones_do() -> None:
    assert fewest_within([1, 2, 4, 8], [3.0, 1.0, 3.1, 3.0], dense=3.0) == 4
    assert fewest_within([1, 2, 4, 8], [3.0, 2.9, 3.1, 9.0], dense=3.0) is None


# --- metrics at answers


def asked(answers: list[list[int]], foils: list[list[int]]) -> Batch:
    """Sequences of two positions of which the last counts."""
    counted = torch.tensor([[False, True]] * len(answers))
    wide = [torch.tensor([[row, row] for row in part]) for part in (answers, foils)]
    return Batch(torch.zeros(len(answers), 2, dtype=torch.long), wide[0], counted, foils=wide[1])


def test_several_answers_count_together() -> None:
    logits = torch.tensor([[[9.0] * 5, [0.0, 1.0, 2.0, 3.0, 4.0]]]).repeat(2, 1, 1)
    batch = asked([[1, 3], [4, NO_TOKEN]], [[2, 4], [0, 1]])
    p = logits[0, 1].softmax(0)
    expected = [(p[1] + p[3]).log() - (p[2] + p[4]).log(), p[4].log() - (p[0] + p[1]).log()]
    found = LOGIT_DIFF.per_sequence(logits, batch, None)
    torch.testing.assert_close(found, torch.stack(expected))
    assert ACCURACY.per_sequence(logits, batch, None).tolist() == [0, 1]
    nll = NLL.per_sequence(logits, batch, None)
    torch.testing.assert_close(nll, -torch.stack([(p[1] + p[3]).log(), p[4].log()]))


@pytest.mark.parametrize(
    "metric", [LOGIT_DIFF, NLL, LogitDifferenceGap(), AccuracySurrogate()], ids=lambda metric: metric.name
)
def test_gradients_at_answers_are_those_of_autograd(metric: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 5, generator=generator, requires_grad=True)
    dense = torch.randn(2, 2, 5, generator=generator)
    batch = asked([[1, 3], [4, NO_TOKEN]], [[2, 4], [0, 1]])
    (slope,) = torch.autograd.grad(metric.mean(logits, batch, dense), logits)
    p = logits.log_softmax(-1)[:, 1]
    right = torch.stack([p[0, [1, 3]].logsumexp(0), p[1, 4]])
    difference = right - torch.stack([p[0, [2, 4]].logsumexp(0), p[1, [0, 1]].logsumexp(0)])
    expected = {
        "logit_diff": difference,
        "nll": -right,
        "logit_diff_gap": (difference - LOGIT_DIFF.per_sequence(dense, batch, None)).abs(),
        "logistic_loss": (1 + (-difference).exp()).log(),
    }[metric.name].mean()
    torch.testing.assert_close(metric.mean(logits, batch, dense), expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, logits)[0], rtol=1e-4, atol=1e-6)
    assert slope[:, 0].abs().max() == 0  # of the position that does not count


def test_a_metric_of_answers_refuses_running_text() -> None:
    rows = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    masked = MaskedModel(tiny_model("llama"))
    with pytest.raises(UserError, match="needs right and wrong answers"):
        Evaluator(masked, Batch.of_rows(rows))([None], [LOGIT_DIFF])


# --- ablations


def pairs(count: int = 5, length: int = 9) -> Batch:
    """Prompts beside others with the same last token."""
    generator = torch.Generator().manual_seed(4)
    tokens, paired = (torch.randint(3, 97, (count, length), generator=generator) for _ in range(2))
    paired[:, -1] = tokens[:, -1]
    counted = torch.zeros(count, length, dtype=torch.bool)
    counted[:, -1] = True
    answers, foils = (torch.randint(3, 97, (count, length), generator=generator) for _ in range(2))
    return Batch(tokens, answers, counted, foils=foils, paired=paired)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_the_empty_model_does_as_on_the_paired_prompt_under_counterfactual_ablation(name: str) -> None:
    masked, batch = MaskedModel(tiny_model(name)), pairs()
    ablation = CounterfactualAblation().fit(masked, batch, 2)
    assert batch.paired is not None
    empty = masked.logits(batch, torch.zeros(masked.space.num_channels), ablation)
    torch.testing.assert_close(empty[:, -1], masked.logits(batch.paired)[:, -1], rtol=1e-3, atol=1e-4)
    full = masked.logits(batch, torch.ones(masked.space.num_channels), ablation)
    torch.testing.assert_close(full, masked.logits(batch))


def test_counterfactual_ablation_needs_paired_prompts() -> None:
    masked = MaskedModel(tiny_model("llama"))
    with pytest.raises(UserError, match="needs paired prompts"):
        CounterfactualAblation().fit(masked, Batch(pairs().tokens), 2)


def test_means_per_position_are_those_of_the_calibration_prompts() -> None:
    masked, batch = MaskedModel(tiny_model("gpt2")), pairs()
    seen: dict[tuple[int, str], torch.Tensor] = {}
    with masked.recording(lambda i, q, k, v: seen.update({(i, "k"): k, (i, "v"): v})):
        masked.hidden(batch)
    fitted = MeanPerPositionAblation().fit(masked, batch, 2)
    for fill, place in zip(fitted.fills(masked, batch), masked.space.slices, strict=True):
        torch.testing.assert_close(fill[0], seen[place].mean(0))
    longer = Batch(torch.cat([batch.tokens, batch.tokens], 1))
    beyond = fitted.fills(masked, longer)[0]
    torch.testing.assert_close(beyond[0, :, 9:], seen[0, "k"].mean((0, 2))[:, None].expand(-1, 9, -1))


def test_the_gradient_of_constants_is_that_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.double)
    gate = torch.rand(3, 2, 4, generator=generator, dtype=torch.double, requires_grad=True)
    fill = torch.randn(2, 4, generator=generator, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g, f: gated(states, g, f), (gate, fill))
    assert torch.autograd.gradcheck(lambda g, f: gated(states, g[0], f), (gate, fill))


def test_optimal_constants_start_at_the_means_and_lower_the_kl() -> None:
    masked, batch = MaskedModel(tiny_model("llama")), pairs()
    start = OptimalAblation(learning_rate=0.1).fit(masked, batch, 2)
    torch.testing.assert_close(start.states, MeanAblation().fit(masked, batch, 2).states)
    gates = torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(0)) > 0.5
    learned = learn_constants(masked, batch, gates, start, steps=20, at_once=5)
    before, after = (Evaluator(masked, batch, one).mean(gates, KL) for one in (start, learned))
    assert after < 0.8 * before
    assert torch.equal(
        start.states, MeanAblation().fit(masked, batch, 2).states
    )  # another mask starts there too
    again = start.fresh()
    again.load_state_dict(learned.state_dict())
    torch.testing.assert_close(again.states, learned.states)


def test_optimal_constants_are_learned_with_the_mask() -> None:
    masked, batch = MaskedModel(tiny_model("llama")), pairs()
    ablation = OptimalAblation().fit(masked, batch, 2)
    before = ablation.states.detach().clone()
    gate_gradient(masked, batch, torch.full((masked.space.num_channels,), 0.5), KL, ablation)
    ablation.step()
    moved = (ablation.states - before).abs() > 0
    assert moved.float().mean() > 0.9


# --- gates


@pytest.mark.parametrize(
    ("wording", "passes"),
    [
        ("faithfulness >= 0.9", True),
        ("faithfulness>0.95", False),
        ("metrics.masked.kl <= 0.3", True),
        ("kl < 0.01", False),
        ("seed_iou >= 0.1", False),  # not measured
        ("circuit.cmd.value <= 1e3", False),
    ],
)
def test_gates_are_judged_by_the_numbers_of_result_json(wording: str, passes: bool) -> None:
    result = Result.model_validate(
        {"status": "done", "faithfulness": 0.5, "metrics": {"masked": {"kl": 0.2}}}
    )
    result.circuit = CircuitInfo(faithfulness=0.95, masked=TaskScores(kl=0.02))
    judge_gates(result, [wording, "faithfulness >= 0"])
    verdict = result.verdict
    assert verdict is not None
    assert [gate.passed for gate in verdict.gates] == [passes, True]
    assert verdict.overall == ("GO" if passes else "NO_GO")
    assert Verdict.model_validate(verdict.as_json()) == verdict


def test_a_run_of_text_is_judged_by_its_loss() -> None:
    result = Result.model_validate({"status": "done", "faithfulness": 0.5})
    assert Gate.parse("faithfulness >= 0.5").judge(result).value == 0.5
    judge_gates(result, [])
    assert result.verdict is None


@pytest.mark.parametrize(
    "gates", ["faithfulness", ["faithfulness == 1"], ["beauty > 1"], ["metrics.masked > 1"], 3]
)
def test_gates_that_mean_nothing_are_refused_before_the_run(gates: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gate"):
        analyze(output_dir=tmp_path / "run", gates=gates)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError):
        parse_gates(gates)


@pytest.mark.parametrize(
    "settings",
    [
        {"shares": [0.5]},
        {"shares": [0.5, 0.1]},
        {"shares": [0.0, 1.0]},
        {"ablations": ["noise"]},
        {"prompts": 1},
        {"knockouts": -1},
    ],
)
def test_impossible_settings_of_a_study_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="circuit"):
        CircuitStudy(**settings)


def contrasted(count: int = 5) -> TokenData:
    """Prompts of a tiny model that does better at each of them than without its attention, paraphrases included."""
    masked, batch = MaskedModel(tiny_model("llama")), pairs(count)
    dense, empty = Evaluator(masked, batch)([None, torch.zeros(masked.space.num_channels)], [LOGIT_DIFF])[
        :, 0
    ]
    worse = (dense < empty)[:, None]
    assert batch.answers is not None
    assert batch.foils is not None
    answers, foils = (batch.answers, batch.foils), (batch.foils, batch.answers)
    right, wrong = (torch.where(worse, other, own) for own, other in zip(answers, foils, strict=True))
    prompts = replace(batch, answers=right, foils=wrong)
    task = Task("some", prompts, 0.0, {})
    return TokenData("some", "none", prompts, prompts, None, "", task=task)


def study_of(data: TokenData, study: CircuitStudy) -> CircuitInfo:
    """What half of a tiny model's channels are worth as a circuit."""
    masked = MaskedModel(tiny_model("llama"))
    units = make_units(masked)
    ranking = torch.rand(units.count, generator=torch.Generator().manual_seed(0))
    found = study.measure(
        masked, data, units, ranking > 0.5, ranking, ZERO, data.calibration, 8, "absolute", seed=0
    )
    assert found is not None
    return found


def intervals(circuit: Any) -> dict[str, Any]:
    """All intervals of a section, and what is counted by tests."""
    found: dict[str, Any] = {}
    for name, value in circuit:
        if name.endswith("interval") or name in ("needed", "harmful"):
            found[name] = value
        for number, part in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(part, Section):
                found |= {f"{name} {number} {key}": one for key, one in intervals(part).items()}
    return found


def test_twins_of_all_prompts_leave_every_interval_as_it_is() -> None:
    study = CircuitStudy(
        shares=[0.2, 0.8], ablations=["mean"], knockouts=2, minimality_parts=3, explained_units=0
    )
    single = contrasted()
    both = torch.arange(5).repeat_interleave(2)
    twins = replace(single.evaluation[both], families=both)
    assert single.task is not None
    twice = replace(single, evaluation=twins, task=replace(single.task, paraphrases=twins))
    found, expected = (intervals(study_of(data, study)) for data in (twice, single))
    assert len(expected) > 20
    assert None not in expected.values()
    for name, ends in expected.items():
        assert found[name] == pytest.approx(ends, rel=1e-4, abs=1e-5), name
    apart = replace(twice, evaluation=replace(twins, families=torch.arange(10)))
    low, high = intervals(study_of(apart, study))["masked 0 kl_interval"]
    assert high - low < 0.9 * (expected["masked 0 kl_interval"][1] - expected["masked 0 kl_interval"][0])


@dataclass(frozen=True)
class Noise(_Bench):
    """Masks among which there is no difference."""

    def __call__(self, gates: Any) -> torch.Tensor:
        return torch.randn(len(gates), 3, len(self.prompts), dtype=torch.double)


def test_of_parts_that_change_nothing_hardly_ever_one_is_called_needed() -> None:
    masked, study = MaskedModel(tiny_model("llama")), CircuitStudy()
    units = make_units(masked)
    bench = Noise(masked, pairs(16), units, ZERO, 8)
    torch.manual_seed(0)
    keep, generator = torch.ones(units.count, dtype=torch.bool), torch.Generator().manual_seed(0)
    found = [study._minimality(bench, keep, generator) for _ in range(100)]
    assert found[0].tested >= 8
    assert sum(one.needed + one.harmful > 0 for one in found) <= 10
    assert found[0].correction == "holm"


def test_means_over_seeds_have_the_interval_of_students_t() -> None:
    found = OverSeeds.of([0.8, None, 1.0, 0.9])
    assert (found.mean, found.seeds) == (pytest.approx(0.9), 3)
    half = 4.302653 * 0.1 / 3**0.5
    assert found.interval == pytest.approx([0.9 - half, 0.9 + half], rel=1e-5)
    assert OverSeeds.of([0.8]).interval is None
    assert OverSeeds.of([None]).mean is None


# --- a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path) -> Any:
    """A tiny random model on the induction prompts that it gets right by chance."""
    return analyze(
        str(byte_model_directory),
        tmp_path_factory.mktemp("circuits") / "run",
        target_sparsity=0.5,
        steps=6,
        device="cpu",
        dataset=InductionTask(
            calibration_prompts=48, evaluation_prompts=40, paraphrase_prompts=16, needed_accuracy=0.2
        ),
        method=TopK(finishing_trials=0),
        ablation=CounterfactualAblation(),
        trainer=MaskTrainer(batch_size=4),
        controls=Controls(random_masks=3),
        circuit=CircuitStudy(
            prompts=12, optimal_steps=2, knockouts=2, minimality_parts=3, paraphrase_iou=True
        ),
        gates=["faithfulness >= -100", "kl <= 0", "seed_iou >= 0.7", "paraphrase_iou > 0"],
        visualizer=Visualizer([CircuitFigure(), CircuitHeads(), CircuitPatterns(), CircuitDiagram()], dpi=60),
    )


def without_attention() -> dict[str, Any]:
    """Settings of an analysis of a model whose attention adds nothing, on prompts that it gets right by chance."""
    model = tiny_model("llama", vocab_size=256)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    return {
        "checkpoint": model,
        "tokenizer": byte_tokenizer(),
        "steps": 2,
        "device": "cpu",
        "dataset": InductionTask(
            calibration_prompts=48, evaluation_prompts=40, paraphrase_prompts=16, needed_accuracy=0.2
        ),
        "method": TopK(finishing_trials=0),
        "ablation": CounterfactualAblation(),
        "controls": Controls(random_masks=0),
    }


def test_where_nothing_is_needed_nothing_is_faithful(tmp_path: Path) -> None:
    study = CircuitStudy(prompts=12, ablations=["mean"], optimal_steps=0, knockouts=2, minimality_parts=1)
    gates = ["faithfulness >= -100"]
    run = analyze(
        output_dir=tmp_path / "run",
        target_sparsity=0.5,
        circuit=study,
        gates=gates,
        visualizer=Visualizer([CircuitFigure()], dpi=40),
        **without_attention(),
    )
    circuit, verdict = run.result.circuit, run.result.verdict
    assert circuit is not None
    assert not circuit.tells
    for row in (circuit, *circuit.curve, *circuit.ablations, circuit.paraphrase):
        assert row.faithfulness is None  # type: ignore[union-attr]
    assert {one.value for one in (circuit.cpr, circuit.cmd, circuit.cpr_log, circuit.cmd_log)} == {None}
    assert circuit.within_10_percent is None
    run.result.faithfulness = 1.0  # of the loss; the gate is of the logit difference
    judge_gates(run.result, gates)
    verdict = run.result.verdict
    assert verdict is not None
    assert verdict.overall == "NO_GO"
    for name in ("circuit_analysis_report.md", "report.html"):
        assert "The behaviour needs no channel" in (tmp_path / "run" / name).read_text()


def test_where_nothing_is_needed_no_smallest_mask_is_searched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be told apart on the .* use target_kl"):
        analyze(output_dir=tmp_path / "run", target_faithfulness=0.9, **without_attention())


def test_a_run_on_a_task_measures_its_circuit(run: Any) -> None:
    result: Result = run.result
    task, circuit = result.task, result.circuit
    assert task is not None
    assert circuit is not None
    assert task.name == "induction"
    assert task.prompts["evaluation"] + task.left_out["evaluation"] == 40
    assert circuit.dense.accuracy == 1  # what the dense model gets wrong is left out
    assert circuit.dense.kl == 0
    assert [row.ablation for row in circuit.ablations] == [
        "zero",
        "mean",
        "mean_per_position",
        "counterfactual",
        "optimal",
    ]
    own = circuit.ablations[3]
    assert own.masked == circuit.masked
    assert own.faithfulness == circuit.faithfulness
    assert len({row.faithfulness for row in circuit.ablations}) == 5
    first, last = circuit.curve[0], circuit.curve[-1]
    assert (first.kept, last.kept) == (0, result.sparsity.total)
    assert (last.faithfulness, last.completeness, last.kl) == (1, 0, 0)
    assert (first.faithfulness, first.completeness) == (0, 1)
    half = next(point for point in circuit.curve if point.share == 0.5)
    assert half.faithfulness == pytest.approx(circuit.faithfulness)
    for scores_ in (circuit.empty, circuit.masked, circuit.complement):
        assert scores_.kl is not None
        assert scores_.kl_p95 is not None
        assert scores_.kl_median is not None
        assert scores_.kl_p95 >= scores_.kl_median > 0
    low, high = circuit.faithfulness_interval or (1, 0)
    assert low <= (circuit.faithfulness or 0) <= high
    for row in (*circuit.curve, circuit.empty, circuit.masked, circuit.complement, circuit.paraphrase):
        assert row is not None
        low, high = row.kl_interval or (1, 0)
        assert low <= (row.kl or 0) <= high
    assert circuit.completeness_interval is not None
    assert circuit.incompleteness is not None
    assert circuit.incompleteness.draws == 2
    assert circuit.minimality is not None
    assert circuit.minimality.tested == 3
    assert circuit.paraphrase is not None
    assert circuit.selection == "signed"


def test_the_verdict_and_the_circuit_are_in_the_report(run: Any) -> None:
    verdict = run.result.verdict
    assert verdict.overall == "NO_GO"
    assert [gate.passed for gate in verdict.gates] == [True, False, False, True]
    report = (run.directory / "circuit_analysis_report.md").read_text()
    assert "## Verdict: NO GO" in report
    assert "FAIL, not measured" in report
    assert "## The circuit of `induction`" in report
    assert "`counterfactual` (learned with)" in report
    assert "(circuit.png)" in report
    assert (run.directory / "circuit.png").stat().st_size > 5000


def test_random_masks_of_a_task_are_told_by_the_logit_difference(run: Any) -> None:
    random = run.result.random_masks
    assert len(random.logit_diff_faithfulness) == 3
    assert random.logit_diff_faithfulness_mean == pytest.approx(sum(random.logit_diff_faithfulness) / 3)
    low, high = random.logit_diff_faithfulness_interval
    assert low < random.logit_diff_faithfulness_mean < high
    report = (run.directory / "circuit_analysis_report.md").read_text()
    mean, own = (
        f"{value:.2f} ({ends[0]:.2f} to {ends[1]:.2f})"
        for value, ends in (
            (random.logit_diff_faithfulness_mean, random.logit_diff_faithfulness_interval),
            (random.logit_diff_faithfulness_of_mask, random.logit_diff_faithfulness_of_mask_interval),
        )
    )
    assert f"on average (faithfulness of the logit difference {mean}); this mask has" in report
    assert f"({own}) on the same {random.tokens} prompts, p = " in report
    prompts = run.result.task.prompts["evaluation"]
    assert f"on {prompts} evaluation prompts: " in report
    assert f"On 12 evaluation prompts, the first of the {prompts} that" in report


def test_a_circuit_of_an_earlier_version_is_drawn_again(run: Any, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run.directory, old)

    def without(content: Any) -> Any:
        if isinstance(content, list):
            return [without(one) for one in content]
        if not isinstance(content, dict):
            return content
        new = (
            "kl_interval",
            "logit_diff_interval",
            "completeness_interval",
            "interval",
            "correction",
            "same",
        )
        left = {key: without(value) for key, value in content.items() if key not in new}
        return {key: value for key, value in left.items() if not key.startswith("logit_diff_faithfulness_of")}

    told = json.loads((old / "result.json").read_text())
    (old / "result.json").write_text(json.dumps(without(told)))
    redraw_run(old, Visualizer([CircuitFigure()], dpi=40))
    report = (old / "circuit_analysis_report.md").read_text()
    assert "(faithfulness of the loss " in report
    assert "each with its 95 % interval over" in report


def test_seeds_of_a_task_have_means_with_intervals_over_seeds(
    byte_model_directory: Path, tmp_path: Path
) -> None:
    settings = SMALL_RUN | {
        "dataset": InductionTask(
            calibration_prompts=48, evaluation_prompts=40, paraphrase_prompts=0, needed_accuracy=0.2
        ),
        "circuit": CircuitStudy(prompts=12, ablations=[], knockouts=0, minimality_parts=0, explained_units=0),
    }
    run = analyze(
        str(byte_model_directory),
        tmp_path / "run",
        seeds=2,
        target_sparsity=0.5,
        method=TopK(finishing_trials=0),
        stability=Stability(necessity=False, subset_draws=0, null_control=False),
        **settings,
    )
    seeds = run.result.circuit.seeds  # type: ignore[union-attr]
    for name in ("faithfulness", "kl", "cmd"):
        values, found = getattr(seeds, name), getattr(seeds, f"{name}_over_seeds")
        assert len(values) == found.seeds == 2
        assert found.mean == pytest.approx(sum(values) / 2)
        half = 12.7062 * abs(values[0] - values[1]) / 2  # of Student's t with one degree of freedom
        assert found.interval == pytest.approx([found.mean - half, found.mean + half], rel=1e-3)
    low, high = seeds.kl_over_seeds.interval
    for name in ("circuit_analysis_report.md", "report.html"):
        report = (tmp_path / "run" / name).read_text()
        assert f"KL {seeds.kl_over_seeds.mean:.3f} ({low:.3f} to {high:.3f})" in report
        assert "the consensus: how far masks of other seeds differ is not in them" in report


def test_a_run_on_a_task_draws_its_heads_and_what_they_read(run: Any) -> None:
    drawing = CircuitDrawing.read(run.directory)
    assert drawing is not None
    assert drawing.edges
    assert drawing.examples[0].patterns
    assert "<path" in (run.directory / "circuit_diagram.svg").read_text()
    assert (run.directory / "circuit_patterns.png").stat().st_size > 5000


def test_the_last_lines_tell_of_task_and_gates(run: Any) -> None:
    lines = summary_lines(run.result, run.directory)
    (task,) = [line for line in lines if line.startswith("task induction, counterfactual ablation: ")]
    assert f"CMD {run.result.circuit.cmd.value:.3f}" in task
    told = "faithfulness >= -100 PASS, kl <= 0 FAIL, seed_iou >= 0.7 FAIL, paraphrase_iou > 0 PASS"
    assert f"gates: {told}: NO_GO" in lines


def test_a_mask_of_paraphrases_is_held_against_the_mask_itself(run: Any) -> None:
    found, task = run.result.circuit.paraphrase, run.result.task
    assert found.learned_prompts == task.prompts["calibration"] > task.prompts["paraphrase"] == found.prompts
    assert 0 < found.iou < 1
    assert 0 < found.chance < 1
    assert "mask of paraphrases" in [part.name for part in run.result.cost.parts]
    told = (
        f"A mask learned on {found.learned_prompts} such prompts shares IoU {found.iou:.2f} of the channels"
    )
    assert told in (run.directory / "circuit_analysis_report.md").read_text()
    assert not (run.directory / ".paraphrases").exists()


SMALL_RUN: dict[str, Any] = {
    "steps": 4,
    "device": "cpu",
    "ablation": CounterfactualAblation(),
    "trainer": MaskTrainer(batch_size=4),
    "controls": Controls(random_masks=0),
    "circuit": CircuitStudy(
        prompts=4, ablations=[], knockouts=0, minimality_parts=0, explained_units=0, paraphrase_iou=True
    ),
    "visualizer": Visualizer([]),
}


@pytest.mark.slow
def test_the_same_prompts_give_the_same_mask_again(
    monkeypatch: pytest.MonkeyPatch, byte_model_directory: Path, tmp_path: Path
) -> None:
    task = InductionTask(
        calibration_prompts=48, evaluation_prompts=40, paraphrase_prompts=16, needed_accuracy=0.2
    )
    learned_on = task.load(byte_tokenizer(), "bytes", 256, None, 0).calibration
    monkeypatch.setattr(InductionTask, "paraphrases", lambda *_: learned_on)
    method = TopK(finishing_trials=2)
    settings = SMALL_RUN | {"dataset": task, "method": method, "target_sparsity": 0.5}
    found = analyze(str(byte_model_directory), tmp_path / "run", **settings).result.circuit
    assert found is not None
    assert found.paraphrase is not None
    assert found.paraphrase.iou == 1
    assert found.paraphrase.chance is not None
    assert found.paraphrase.chance < 0.9


def test_a_mask_of_paraphrases_that_says_nothing_is_refused(
    byte_model_directory: Path, tmp_path: Path
) -> None:
    def task(**changes: Any) -> InductionTask:
        sizes = {"calibration_prompts": 48, "evaluation_prompts": 40, "paraphrase_prompts": 16}
        return InductionTask(**sizes | changes, needed_accuracy=0.2)

    def attempt(name: str, **changes: Any) -> None:
        settings = {"dataset": task(), "method": TopK(finishing_trials=0), **SMALL_RUN, **changes}
        analyze(str(byte_model_directory), tmp_path / name, **settings)

    with pytest.raises(UserError, match="one number"):
        attempt("nested", target_sparsity=[0.5, 0.7])
    with pytest.raises(UserError, match="directions of its own"):
        attempt("learned", basis=LearnedBasis(), target_sparsity=0.5)
    with pytest.raises(UserError, match="there are none; raise dataset"):
        attempt("none", dataset=task(paraphrase_prompts=0), target_sparsity=0.5)


def test_a_task_run_is_measured_again_from_its_files(run: Any) -> None:
    again = run.evaluate(batch_size=8)
    assert again.metrics.masked.kl == pytest.approx(run.result.metrics.masked.kl, rel=1e-4)


@pytest.mark.slow
def test_circuits_of_several_runs_are_compared(run: Any, byte_model_directory: Path, tmp_path: Path) -> None:
    other = analyze(
        str(byte_model_directory),
        tmp_path / "pronouns",
        target_sparsity=0.75,
        device="cpu",
        dataset=GenderedPronoun(
            calibration_prompts=32, evaluation_prompts=32, paraphrase_prompts=0, needed_accuracy=0
        ),
        method=Fisher(),
        trainer=MaskTrainer(batch_size=4),
        controls=Controls(random_masks=0),
        circuit=CircuitStudy(prompts=4, ablations=[], knockouts=0, minimality_parts=0, explained_units=0),
        visualizer=Visualizer([]),
    )
    found = compare_circuits({"induction": run, "pronoun": other.directory}, tmp_path / "both")
    (shared,) = found.overlap
    kept = [one.channels_frame()["kept"].to_numpy() for one in (run, other)]
    assert shared.iou == pytest.approx((kept[0] & kept[1]).sum() / (kept[0] | kept[1]).sum())
    assert shared.chance is not None
    assert 0 < shared.chance < 1
    masked = run.result.metrics.masked
    own = next(one for one in found.transfer if one.mask == one.data == "induction")
    assert own.kl == pytest.approx(masked.kl, rel=1e-3)
    assert found.faithfulness("pronoun", "induction") != found.faithfulness("induction", "induction")
    low, high = own.kl_interval or (1, 0)
    assert low < (own.kl or 0) < high
    table = (tmp_path / "both" / "circuits.md").read_text()
    assert table.count("\n| induction |") == 4
    assert f"| {shared.iou:.2f} ({shared.chance:.2f}) |" in table
    written = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert (written["kind"], written["overlap"][0]["shared"]) == ("circuits", int((kept[0] & kept[1]).sum()))
    transfer = pd.read_csv(tmp_path / "both" / "transfer.csv")
    known = [math.nan if one.faithfulness is None else one.faithfulness for one in found.transfer]
    assert transfer["faithfulness"].tolist() == pytest.approx(known, nan_ok=True)
    assert not math.isnan(known[0])
    assert (
        found.faithfulness("pronoun", "pronoun") is None
    )  # a random model does no better than the empty one
    assert (transfer["kl_low"] < transfer["kl"]).all()
    assert pd.read_csv(tmp_path / "both" / "overlap.csv")["chance"].tolist() == pytest.approx([shared.chance])
    assert (tmp_path / "both" / "circuits.png").stat().st_size > 5000
    told = circuits_lines(found)
    assert told[0] == (
        f"induction and pronoun share IoU {shared.iou:.2f} ({shared.chance:.2f}), in brackets random masks"
    )
    assert len(told) == 5
    with pytest.raises(UserError, match="two or more"):
        compare_circuits({"induction": run})


@pytest.mark.slow
def test_circuits_of_different_models_and_bases_are_refused(
    run: Any, byte_model_directory: Path, tmp_path: Path
) -> None:
    def another(checkpoint: str | Path, name: str, **changes: Any) -> Path:
        task = InductionTask(
            calibration_prompts=48, evaluation_prompts=40, paraphrase_prompts=0, needed_accuracy=0.1
        )
        settings = SMALL_RUN | {"circuit": None, "ablation": ZERO, "dataset": task, "method": Fisher()}
        analyze(str(checkpoint), tmp_path / name, target_sparsity=0.5, **settings | changes)
        return tmp_path / name

    in_basis = another(byte_model_directory, "principal", basis=PrincipalBasis())
    with pytest.raises(
        UserError, match=r"keeps channels and b keeps directions of its own basis=principal, .*"
    ):
        compare_circuits({"a": run, "b": in_basis})
    found = compare_circuits({"b": in_basis, "again": in_basis})
    assert found.overlap[0].iou == 1
    copy = tmp_path / "copy"
    shutil.copytree(run.directory, copy)
    told = json.loads((copy / "result.json").read_text())
    told["checkpoint"] |= {"sha256": "0" * 64, "name": "other"}
    (copy / "result.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"a is a run of .* and b one of other, with other weights"):
        compare_circuits({"a": run, "b": copy})
    with pytest.raises(UserError, match=r"circuit 'a' is \['x', 'y'\]; give it the directory of one run"):
        one_directory_each({"a": ["x", "y"]})


@pytest.mark.slow
def test_a_rival_keeps_other_units(run: Any, byte_model_directory: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "checkpoint": str(byte_model_directory),
        "target_sparsity": 0.5,
        "steps": 6,
        "device": "cpu",
        "dataset": InductionTask(
            calibration_prompts=48, evaluation_prompts=40, paraphrase_prompts=0, needed_accuracy=0.2
        ),
        "ablation": CounterfactualAblation(),
        "trainer": MaskTrainer(batch_size=4),
        "controls": Controls(random_masks=0),
        "circuit": CircuitStudy(prompts=4, ablations=[], knockouts=0, minimality_parts=0, explained_units=0),
        "visualizer": Visualizer([]),
        "rival_of": run.directory,
    }
    method = TopK(finishing_trials=0, avoid_weight=10.0)
    rival = analyze(output_dir=tmp_path / "rival", method=method, **settings).result.rival
    assert rival is not None
    assert rival.iou is not None
    assert rival.chance is not None
    assert rival.iou < 0.5 * rival.chance
    with pytest.raises(UserError, match="rival_of needs a method"):
        analyze(output_dir=tmp_path / "scored", method=Fisher(), **settings)


def test_random_masks_can_match_the_norms_of_activations() -> None:
    masked, batch = MaskedModel(tiny_model("llama")), pairs()
    units = make_units(masked)
    norms = activation_norms(masked, units, batch, at_once=2)
    seen: list[torch.Tensor] = []
    with masked.recording(lambda i, q, k, v: seen.extend([k, v])):
        masked.hidden(batch)
    squares = torch.cat([states.square().sum((0, 2)).flatten() for states in seen])
    torch.testing.assert_close(norms, squares.sqrt(), rtol=1e-4, atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(units.count, generator=generator) > 0.5
    place = places(units)
    for mask in matched_random_masks(units, keep, 5, generator, norms):
        assert not torch.equal(mask, keep)
        for number in place.unique():
            here = (place == number).nonzero().flatten()
            for quarter in here[norms[here].argsort()].chunk(4):
                assert int(mask[quarter].sum()) == int(keep[quarter].sum())
