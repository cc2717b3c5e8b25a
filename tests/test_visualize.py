"""Drawing finished runs again from their files: the same figures and report, and what cannot be drawn is said."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparable_runs import write_run
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra_application import experiment
from matplotlib.image import imread

from mechint import config as configuration
from mechint.analysis.attempt import Outputs
from mechint.analysis.preparation import Inputs
from mechint.api import describe_settings, make_analysis
from mechint.checkpoints import CheckpointLoader
from mechint.data import PythonDocs
from mechint.errors import UserError
from mechint.imports.old_results import read_old_run
from mechint.learning import MaskTrainer
from mechint.learning.recipe import Recipe
from mechint.methods import CubicSchedule, NormalizedSGD, TopK
from mechint.reporting import Context, ImportanceOverview, SparsityCurves, Visualizer
from mechint.reporting.finding import cautions, finding, headline_lines
from mechint.reporting.redrawing import redraw_run, redraw_tree

REPORT = "circuit_analysis_report.md"
DPI = 40
EVEN = [(8, 8)] * 3
FIGURES = "[{_target_: mechint.reporting.ImportanceOverview}, {_target_: mechint.reporting.SparsityCurves}]"


def visualizer() -> Visualizer:
    """Coarse figures, of what a mask and of what a log holds."""
    return Visualizer([ImportanceOverview(), SparsityCurves()], dpi=DPI)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path) -> Path:
    """The directory of a real run of a tiny model."""
    settings: dict[str, Any] = {
        "target_sparsity": 0.5,
        "seed": 0,
        "inputs": Inputs(
            checkpoint=str(byte_model_directory),
            loader=CheckpointLoader(),
            dataset=PythonDocs(sequence_length=32, calibration_tokens=512, evaluation_tokens=256),
            device="cpu",
        ),
        "recipe": Recipe(
            method=TopK(finishing_trials=2),
            make_optimizer=functools.partial(NormalizedSGD, lr=0.1, momentum=0.9),
            schedule=CubicSchedule(end=0.6),
            steps=3,
        ),
        "trainer": MaskTrainer(batch_size=4, log_every=1),
        "outputs": Outputs(visualizer=visualizer()),
    }
    directory = tmp_path_factory.mktemp("run") / "first"
    make_analysis(**settings).run(directory, describe_settings(settings))
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be drawn again."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """What the replaced tool left: one mask for K and V per layer, and its report."""
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for layer in range(3):
        importance = torch.rand(2, 8, generator=generator)
        mask = (importance > 0.4).float()
        masks[f"transformer.h.{layer}.attn"] = {
            "logits": torch.logit(importance),
            "mask": mask,
            "importance": importance,
            "sparsity": float(1 - mask.mean()),
        }
    directory = tmp_path / "old" / "results"
    directory.mkdir(parents=True)
    torch.save(masks, directory / "final_masks.pt")
    (directory / REPORT).write_text("### Initial (Unpruned)\n- Loss: 3.1\n### Final (Pruned)\n- Loss: 1.55\n")
    return directory


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def same_pictures(one: Path, other: Path) -> int:
    """How many pictures two directories have, all of them equal dot by dot."""
    names = sorted(path.name for path in one.glob("*.png"))
    assert names == sorted(path.name for path in other.glob("*.png"))
    assert all(np.array_equal(imread(one / name), imread(other / name)) for name in names)
    return len(names)


# --- one run


@pytest.mark.slow
def test_the_command_draws_the_same_report_and_pictures(finished: Path, run: Path, tmp_path: Path) -> None:
    before = content(run)
    for path in [*run.glob("*.png"), run / REPORT]:
        path.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with experiment(elsewhere, "visualize.py") as visualize:
        done = visualize(f"run={run}", f"visualizer.figures={FIGURES}", f"visualizer.dpi={DPI}", small=False)
    assert done.code == 0, done.err
    assert str(run / REPORT) in done.out
    assert (run / REPORT).read_bytes() == (finished / REPORT).read_bytes()
    assert same_pictures(finished, run) == 2
    after = content(run)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {p.name for p in run.glob("*.png")} | {
        "report.html"
    }
    assert list(elsewhere.iterdir()) == [], "no logs, no .hydra"


@pytest.mark.slow
def test_a_run_can_be_drawn_elsewhere(finished: Path, run: Path, tmp_path: Path) -> None:
    before = content(run)
    drawn = redraw_run(run, visualizer(), tmp_path / "new" / "place")
    assert drawn[-1] == tmp_path / "new" / "place" / REPORT
    assert drawn[-1].read_bytes() == (finished / REPORT).read_bytes()
    assert same_pictures(finished, tmp_path / "new" / "place") == 2
    assert content(run) == before


def test_another_runs_report_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", EVEN)
    with pytest.raises(UserError, match=r"other holds another run.*choose another output_dir"):
        redraw_run(run, visualizer(), other)
    assert sorted(path.name for path in other.iterdir()) == sorted(
        ["result.json", "final_masks.pt", "final_masks.safetensors"]
    )


def test_a_place_that_cannot_be_written_is_a_users_error(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write figures"):
        redraw_run(run, visualizer(), tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "overrides", [[], ["run=a", "tree=b"], ["run=nowhere"], ["tree=nowhere"], ["run=empty"]]
)
def test_nothing_to_draw_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], overrides: list[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    import visualize  # type: ignore[import-not-found]

    configuration.register()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base=configuration.VERSION_BASE):
        config = compose("visualize", overrides)
    with pytest.raises(UserError) as caught:
        visualize.main.__wrapped__.__wrapped__(config)
    with pytest.raises(SystemExit) as stopped:
        configuration.fail(caught.value)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- a tree


@pytest.mark.slow
def test_a_tree_draws_what_is_finished_and_lists_the_rest(
    finished: Path, old_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "old"
    shutil.copytree(finished, root / "2")
    shutil.copytree(finished, root / "10")
    (root / "10" / REPORT).unlink()
    for name, text in {"broken": "{", "foreign": "[]", "lacks": None, "started": None}.items():
        (root / name).mkdir()
        record = json.loads((finished / "result.json").read_text())
        if name == "started":
            record = {key: record[key] for key in ("status", "checkpoint", "config")} | {"status": "running"}
        else:
            shutil.copy(finished / "final_masks.pt", root / name)
            record.pop("sparsity")
        (root / name / "result.json").write_text(json.dumps(record) if text is None else text)
    (root / ".hidden").mkdir()
    shutil.copy(finished / "result.json", root / ".hidden")
    with caplog.at_level(logging.INFO):
        redrawn = redraw_tree(root, visualizer())
    assert list(redrawn.drawn) == [root / "2", root / "10", old_run], "in natural order"
    assert (root / "10" / REPORT).read_bytes() == (finished / REPORT).read_bytes()
    assert same_pictures(finished, root / "10") == 2
    reasons = {path.name: reason for path, reason in redrawn.left_out.items()}
    assert reasons.keys() == {"broken", "foreign", "lacks", "started"}
    assert "status running" in reasons["started"]
    assert "lacks sparsity" in reasons["lacks"]
    assert all("\n" not in reason and str(root) in reason for reason in reasons.values())
    assert f"drew {root / '2'}" in caplog.text
    assert redrawn.drawn[old_run][-1] == tmp_path / "old_redrawn" / "results" / REPORT


def test_a_tree_without_any_finished_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"nothing to draw below .*no result.json"):
        redraw_tree(tmp_path, visualizer())
    (tmp_path / "a" / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"nothing to draw below .*a/result.json cannot be read") as caught:
        redraw_tree(tmp_path, visualizer())
    assert "\n" not in str(caught.value)


def test_a_tree_is_repeated_below_output_dir(tmp_path: Path) -> None:
    told = {
        "checkpoint__format": "bundled",
        "checkpoint__architecture": "gpt2",
        "checkpoint__num_parameters": None,
        "dataset__tokenizer": "bytes",
        "dataset__calibration_tokens": 64,
    }
    for name in ("a/1", "a/2"):
        write_run(tmp_path / "tree" / name, EVEN, **told)
    drawn = redraw_tree(tmp_path / "tree", Visualizer([]), tmp_path / "out").drawn
    assert [paths[-1] for paths in drawn.values()] == [tmp_path / "out" / n / REPORT for n in ("a/1", "a/2")]
    assert all(not (directory / REPORT).exists() for directory in drawn)


# --- results of the replaced tool


@pytest.mark.slow
def test_old_results_are_drawn_beside_their_own_report(old_run: Path) -> None:
    before = content(old_run)
    drawn = redraw_run(old_run, visualizer())
    assert content(old_run) == before
    target = old_run.with_name("results_redrawn")
    assert sorted(drawn) == sorted(target.iterdir())
    assert [path.name for path in target.glob("*.png")] == ["kv_channel_importance.png"]
    assert redraw_run(old_run, visualizer()) == drawn, "once more into the same place"
    with pytest.raises(UserError, match="own report, which would be overwritten"):
        redraw_run(old_run, visualizer(), old_run)


def test_the_report_on_old_results_claims_nothing_that_was_not_measured(old_run: Path) -> None:
    report = redraw_run(old_run, Visualizer([]))[-1].read_text()
    assert "Nothing was measured with these masks" in report
    for absent in (
        "Perplexity",
        "Faithfulness: ",
        "| Tokens |",
        "None",
        "nan",
        "sparsity_curves",
        "What it cost",
    ):
        assert absent not in report
    assert "| Target sparsity | — |" in report
    assert "loss degradation of -50.00 %" in report
    assert "measured this against the empty model" in report
    assert report.endswith("which channels are certain.\n")


def test_sentences_about_masks_without_numbers(old_run: Path) -> None:
    run = read_old_run(old_run)
    context = Context(run)
    assert not run.measured
    kept = int(sum(mask.k_mask.sum() for mask in run.masks.values()))
    assert finding(context).startswith(f"The masks keep {2 * kept} of 96 attention K/V channels (")
    assert f", as {kept} units)" in finding(context)
    assert "was not measured" in finding(context)
    first, second = headline_lines(context)
    assert "target not recorded" in first
    assert second == "nothing was measured with these masks"
    assert not any("target" in sentence for sentence in cautions(context))


@pytest.mark.slow
def test_real_old_results_are_drawn(shared_data: Path, tmp_path: Path) -> None:
    overview = Visualizer([ImportanceOverview()], dpi=DPI)
    drawn = redraw_tree(shared_data / "old_results", overview, tmp_path / "drawn").drawn
    assert len(drawn) == 2
    for paths in drawn.values():
        assert [path.suffix for path in paths] == [".png", ".html", ".md"]
        assert "measured this against the empty model" in paths[-1].read_text()
