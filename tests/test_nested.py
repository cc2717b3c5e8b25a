"""Masks of several target sparsities from one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechint import analyze
from mechint.analysis.targets import parse_targets
from mechint.comparison.study import read_study
from mechint.data import TextFiles
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.masking import Pools
from mechint.masking.masks import flat_importance, flat_keep
from mechint.masking.space import ChannelSpace, LayerShape
from mechint.methods import TopK
from mechint.reporting import Context, NestedFigure, SurvivalMap, Visualizer
from mechint.reporting.context import KINDS
from mechint.results import RunFiles, load_masks
from mechint.runtime.files import write_json

TARGETS = [0.9, 0.25, 0.5]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path) -> dict[str, Any]:
    """A run of a few steps on a tiny model."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(
        "\n<|endoftext|>\n".join(f"Story {n}: the number {n} is {n * n} squared." for n in range(200))
    )
    return {
        "checkpoint": str(byte_model_directory),
        "dataset": TextFiles(path=str(text), calibration_tokens=1024, evaluation_tokens=512),
        "method": TopK(finishing_trials=6),
        "trainer": MaskTrainer(batch_size=4, learning_rate_decay=0.1),
        "visualizer": Visualizer([NestedFigure(), SurvivalMap()], dpi=50),
        "target_sparsity": TARGETS,
        "steps": 12,
    }


@pytest.fixture(scope="module")
def nested(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """A run for three target sparsities."""
    return analyze(output_dir=tmp_path_factory.mktemp("nested") / "run", **settings)


def space_of(run: RunFiles) -> ChannelSpace:
    """The channel space that a run's masks imply."""
    return ChannelSpace(
        tuple(
            LayerShape(name, index, *mask.k_mask.shape[:1], *mask.k_mask.shape, mask.v_mask.shape[1])
            for index, (name, mask) in enumerate(run.masks.items())
        )
    )


def test_every_target_is_an_ordinary_run_and_their_masks_are_nested(nested: RunFiles) -> None:
    points = nested.result.nested
    assert [point.target for point in points] == sorted(TARGETS)
    space, larger = space_of(nested), None
    for point in points:
        run = RunFiles.read(nested.directory / point.directory)
        assert run.result.status == "done"
        assert run.result.sparsity.target == point.target
        assert run.result.metrics.masked == point.metrics.masked
        keep = flat_keep(space, run.masks)
        assert int(keep.sum()) == point.kept == round((1 - point.target) * len(keep))
        assert larger is None or bool((keep <= larger).all())
        larger = keep
    assert torch.equal(flat_keep(space, nested.masks), larger)
    assert nested.result.metrics.masked == points[-1].metrics.masked


def test_one_ranking_gives_every_mask(nested: RunFiles) -> None:
    space = space_of(nested)
    importance = flat_importance(space, nested.masks)
    for point in nested.result.nested:
        keep = flat_keep(space, RunFiles.read(nested.directory / point.directory).masks)
        assert importance[keep].min() > importance[~keep].max()


def test_the_survival_map_is_read_off_the_one_ranking(nested: RunFiles) -> None:
    context = Context(nested)
    runs = [RunFiles.read(nested.directory / point.directory) for point in nested.result.nested]
    for layer in nested.layers:
        for kind in KINDS:
            masks = [getattr(run.masks[layer.name], f"{kind.lower()}_mask") for run in runs]
            assert (
                context.cells(layer, kind).targets == sum(mask.numpy().astype(int) for mask in masks)
            ).all()


def test_all_targets_together_cost_what_is_said(nested: RunFiles, settings: dict[str, Any]) -> None:
    steps = [
        RunFiles.read(nested.directory / point.directory).result.cost.steps for point in nested.result.nested
    ]
    assert steps == sorted(steps)
    assert nested.result.cost.steps == sum(steps)
    assert 1.5 * settings["steps"] - len(steps) < sum(steps) <= 1.5 * settings["steps"]


def test_the_report_has_a_line_and_the_figure_a_point_for_each(nested: RunFiles) -> None:
    report = (nested.directory / "circuit_analysis_report.md").read_text()
    for point in nested.result.nested:
        assert f"]({point.directory}/circuit_analysis_report.md)" in report
    for figure in (NestedFigure, SurvivalMap):
        assert (nested.directory / f"{figure.stem}.png").stat().st_size > 1000
        assert f"({figure.stem}.png)" in report
    for run in nested.result.cost.runs:
        assert f"| `{run.name}` | {run.steps} |" in report
    assert not (nested.directory / "sparsity_curves.png").exists()  # every target has its own


def test_a_tree_counts_the_runs_and_not_their_sum(nested: RunFiles) -> None:
    study = read_study(nested.directory)
    assert len(study.groups) == 1  # one curve, although every target has its own part of the steps
    assert study.points["sparsity"].tolist() == pytest.approx(
        [point.achieved for point in nested.result.nested], abs=1e-3
    )
    assert any("sums up the nested runs" in note for note in study.notes)


@pytest.mark.slow
def test_a_finished_target_is_not_learned_again(nested: RunFiles, settings: dict[str, Any]) -> None:
    first = nested.directory / "sparsity_0.25" / "result.json"
    before = first.stat().st_mtime_ns
    write_json(nested.directory / "result.json", {**nested.result.as_json(), "status": "failed"})
    again = analyze(output_dir=nested.directory, **settings)
    assert first.stat().st_mtime_ns == before
    assert again.result.nested == nested.result.nested
    masks = load_masks(nested.directory / "final_masks.pt")
    assert all(torch.equal(masks[name].k_mask, mask.k_mask) for name, mask in nested.masks.items())


def test_several_seeds_of_several_targets_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="-m seed=0,1,2"):
        analyze(output_dir=tmp_path, **settings, seeds=2)


@pytest.mark.parametrize(
    ("value", "targets"),
    [
        (0.9, (0.9,)),
        ([0.9, 0.5], (0.5, 0.9)),
        ("0.5:0.9:0.1", (0.5, 0.6, 0.7, 0.8, 0.9)),
        ("0.5:0.85:0.2", (0.5, 0.7)),
        ("0.75", (0.75,)),
        (None, (0.95,)),
    ],
)
def test_targets(value: Any, targets: tuple[float, ...]) -> None:
    assert parse_targets(value) == pytest.approx(targets)


@pytest.mark.parametrize(
    "value", ["much", [], [0.5, 0.5], [0.5, "x"], "0.9:0.5:0.1", "0:1:0", "::", True, {"a": 1}]
)
def test_what_is_no_target_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(UserError) as error:
        parse_targets(value)
    assert "\n" not in str(error.value)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    first=st.floats(0, 0.95),
    second=st.floats(0, 0.95),
    seed=st.integers(0, 99),
)
def test_pools_inside_others_keep_as_many_and_no_others(
    sizes: list[int], first: float, second: float, seed: int
) -> None:
    low, high = sorted([first, second])
    of_unit = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    generator = torch.Generator().manual_seed(seed)
    pools = [Pools(of_unit, torch.full((len(sizes),), share, dtype=torch.double)) for share in (low, high)]
    allowed = pools[0].select(torch.rand(len(of_unit), generator=generator))
    inside = pools[1].within(allowed)
    scores = torch.rand(len(of_unit), generator=generator)
    assert torch.equal(inside.select(scores, 0.0), allowed)
    keep = inside.select(scores)
    assert bool((keep <= allowed).all())
    assert int(keep.sum()) == int(pools[1].select(scores).sum())
