"""The smallest mask that is faithful, or close, enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechint import analyze
from mechint.analysis.goals import Goal
from mechint.analysis.search import COST, COST_OF_ONE, Tried, descend, next_count
from mechint.circuits import CircuitStudy
from mechint.data import TextFiles
from mechint.data.tasks import InductionTask
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.masking import CounterfactualAblation
from mechint.methods import PrincipalBasis, TopK
from mechint.reporting import Visualizer
from mechint.reporting.closing import summary_lines
from mechint.results import RunFiles

MASKS = int(COST / COST_OF_ONE)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A search of a few steps in a bundled model, which attention matters to."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    stories = (f"Story {n}: the number {n} is {n * n} squared, and {n + 1} comes next." for n in range(300))
    text.write_text("\n<|endoftext|>\n".join(stories))
    return {
        "checkpoint": "bundled:llama",
        "dataset": TextFiles(
            path=str(text), sequence_length=32, calibration_tokens=2048, evaluation_tokens=1024
        ),
        "method": TopK(finishing_trials=4),
        "basis": PrincipalBasis(),
        "trainer": MaskTrainer(batch_size=8),
        "visualizer": Visualizer([], dpi=50),
        "steps": 10,
    }


@pytest.fixture(scope="module")
def found(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """The smallest mask with a KL of at most 0.5."""
    return analyze(output_dir=tmp_path_factory.mktemp("search") / "run", **settings, target_kl=0.5)


@pytest.mark.slow
def test_the_smallest_mask_that_reached_the_target_is_the_result(found: RunFiles) -> None:
    result = found.result
    assert result.target is not None
    runs = [RunFiles.read(path.parent) for path in sorted(found.directory.glob("search_*/result.json"))]
    assert result.target.runs == len(runs) == len(result.nested) <= MASKS
    chosen = [run for run in runs if run.result.sparsity.kept == result.target.units]
    assert len(chosen) == 1
    assert result.sparsity.kept == result.target.units < result.sparsity.total
    for name, mask in found.masks.items():
        assert torch.equal(mask.k_mask, chosen[0].masks[name].k_mask)
        assert torch.equal(mask.v_mask, chosen[0].masks[name].v_mask)


@pytest.mark.slow
def test_what_it_reaches_is_measured_on_evaluation_data_with_an_interval(found: RunFiles) -> None:
    target = found.result.target
    assert target is not None
    assert target.achieved == found.result.metrics.masked.kl
    low, high = target.interval
    assert 0 < low < target.achieved < high
    assert target.achieved_se == pytest.approx(found.result.metrics.masked.kl_se)


@pytest.mark.slow
def test_all_masks_together_cost_at_most_what_is_said(found: RunFiles, settings: dict[str, Any]) -> None:
    assert 0 < found.result.cost.steps <= COST * settings["steps"]
    runs = [RunFiles.read(path.parent) for path in found.directory.glob("search_*/result.json")]
    assert found.result.cost.tokens == sum(run.result.cost.tokens for run in runs)


@pytest.mark.slow
def test_a_mask_lies_inside_the_one_that_was_good_enough_before(found: RunFiles) -> None:
    for path in found.directory.glob("search_*/result.json"):
        run = RunFiles.read(path.parent)
        for name in run.result.config["nested_in"]:
            larger = RunFiles.read(found.directory / name)
            for layer, mask in run.masks.items():
                assert bool((mask.k_mask <= larger.masks[layer].k_mask).all())
                assert bool((mask.v_mask <= larger.masks[layer].v_mask).all())


@pytest.mark.slow
def test_a_target_that_no_mask_reaches_is_said(settings: dict[str, Any], tmp_path: Path) -> None:
    run = analyze(output_dir=tmp_path / "run", **settings, target_kl=1e-9)
    assert any("no mask reaches kl 1e-09" in note for note in run.result.notes)
    assert run.result.target is not None
    assert run.result.target.achieved > 1e-9


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"target_faithfulness": 1.5}, "between 0 and 1"),
        ({"target_kl": -1.0}, "must be positive"),
        ({"target_kl": 0.1, "target_faithfulness": 0.9}, "target_faithfulness"),
        ({"target_kl": 0.1, "target_sparsity": 0.9}, "target_sparsity"),
    ],
)
def test_targets_that_say_nothing_or_two_things_are_refused(
    settings: dict[str, Any], tmp_path: Path, given_: dict[str, float], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        analyze(output_dir=tmp_path / "run", **settings, **given_)
    assert not (tmp_path / "run" / "result.json").exists()


@given(total=st.integers(2, 100_000), smallest=st.integers(1, 100_000))
def test_the_count_closes_in_on_the_smallest_that_is_good_enough(total: int, smallest: int) -> None:
    """With any smallest count that reaches the target, never tried twice and never outside what is known."""
    smallest = min(smallest, total)
    above, failed, tried = total, 0, set()
    while (count := next_count(total, above, failed)) is not None:
        assert failed < count < above
        assert count not in tried
        tried.add(count)
        above, failed = (count, failed) if count >= smallest else (above, count)
        assert len(tried) < 60
    assert failed < smallest <= above


# --- on tasks


def search(quality: dict[int, float], goal: Goal, total: int = 1000) -> tuple[list[Tried], Tried]:
    """A search among masks whose quality is the one of the next larger count given, and the mask that it chooses."""

    def attempt_one(kept: int, within: RunFiles | None) -> Tried:
        return Tried(
            kept, next(value for count, value in quality.items() if kept <= count), RunFiles.__new__(RunFiles)
        )

    tried = descend(total, goal, attempt_one)
    return tried, min(tried, key=lambda one: (goal.distance(one.reached), one.kept))


def test_a_circuit_far_above_the_dense_model_is_no_success_but_smaller_ones_may_be() -> None:
    quality = {15: 0.7, 60: 0.95, 200: 1.3, 1000: 1.05}  # by the largest count that has it
    task, text = (Goal.of_search("faithfulness", 0.9, on_task) for on_task in (True, False))
    tried, chosen = search(quality, task)
    assert [one.kept for one in tried[:4]] == [500, 200, 80, 30]
    assert (chosen.reached, chosen.kept) == (0.95, min(one.kept for one in tried if one.reached == 0.95))
    # without such circuits the one that is nearest to the range
    assert search({15: 0.75, 1000: 1.3}, task)[1].reached == 0.75
    assert search({15: 0.7, 1000: 1.15}, task)[1].reached == 1.15
    # of text, more is better
    assert search({15: 0.7, 1000: 1.3}, text)[1].reached == 1.3


def test_a_goal_says_what_it_is_measured_by() -> None:
    means = torch.tensor([3.0, -1.0, 2.6])  # dense, empty, masked
    task, text, kl = (
        Goal.of_search("faithfulness", 0.9, True),
        Goal.of_search("faithfulness", 0.9, False),
        Goal.of_search("kl", 0.2, True),
    )
    assert [goal.metric.name for goal in (task, text, kl)] == ["logit_diff", "nll", "kl"]
    assert task.reached(means) == text.reached(means) == pytest.approx(0.9)
    assert kl.reached(means) == pytest.approx(2.6)
    assert task.asked.bounds == pytest.approx((0.9, 1.1))
    assert [goal.falls_short(1.2) for goal in (task, text, kl)] == [False, False, True]
    assert [goal.distance(1.2) > 0 for goal in (task, text, kl)] == [True, False, True]
    with pytest.raises(UserError, match="equally good"):
        task.reached(torch.tensor([1.0, 1.0, 0.5]))


@pytest.fixture(scope="module")
def circuit(tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path) -> RunFiles:
    """A search on the prompts that a random model gets right by chance."""
    return analyze(
        str(byte_model_directory),
        tmp_path_factory.mktemp("task") / "run",
        target_faithfulness=0.8,
        steps=5,
        dataset=InductionTask(
            calibration_prompts=64, evaluation_prompts=48, paraphrase_prompts=0, needed_accuracy=0.2
        ),
        method=TopK(finishing_trials=0),
        ablation=CounterfactualAblation(),
        trainer=MaskTrainer(batch_size=8),
        circuit=CircuitStudy(prompts=16, ablations=[], knockouts=0, minimality_parts=0, explained_units=0),
        visualizer=Visualizer([]),
    )


@pytest.mark.slow
def test_on_a_task_the_search_goes_by_the_logit_difference(circuit: RunFiles) -> None:
    result, target = circuit.result, circuit.result.target
    assert target is not None
    assert result.circuit is not None
    assert (target.metric, target.highest, target.sequences) == ("logit_diff", pytest.approx(1.2), 16)
    assert target.achieved == pytest.approx(result.circuit.faithfulness)
    assert target.interval == pytest.approx(result.circuit.faithfulness_interval)
    assert target.achieved != pytest.approx(result.faithfulness)  # of the loss
    assert target.selection_sequences == round(result.task.prompts["calibration"] / 4)  # type: ignore[union-attr]
    for path in circuit.directory.glob("search_*/result.json"):
        assert RunFiles.read(path.parent).result.config["held_out"] == target.selection_sequences
    distances = {point.kept: max(0.8 - point.selected, point.selected - 1.2, 0) for point in result.nested}
    assert distances[target.units] == min(distances.values())
    assert target.units == min(kept for kept, one in distances.items() if one == distances[target.units])


def test_the_report_of_a_task_says_what_was_asked_for_and_who_chose(circuit: RunFiles) -> None:
    target = circuit.result.target
    assert target is not None
    told = "a faithfulness of the logit difference from 0.8 to 1.2"
    report = (circuit.directory / "circuit_analysis_report.md").read_text()
    assert f"| Target | {told} with as few units as possible |" in report
    assert f"on {target.selection_sequences} prompts that no mask learned on" in report
    [line] = [
        line for line in summary_lines(circuit.result, circuit.directory) if line.startswith("asked for")
    ]
    assert line.startswith(f"asked for {told}: {target.units} units reach ")
    assert "on 16 evaluation prompts (95 % interval" in line


@pytest.mark.slow
def test_the_last_lines_say_what_was_asked_for_and_found(found: RunFiles) -> None:
    target = found.result.target
    assert target is not None
    lines = summary_lines(found.result, found.directory)
    [line] = [line for line in lines if line.startswith("asked for a KL of at most 0.5")]
    assert f"{target.units} units" in line
    assert f"report: {found.directory / 'report.html'}" in lines
    assert not any(line.startswith("figures:") for line in lines)
