"""A tree of runs as curves, and both ways to compare: the experiment and Python."""

from __future__ import annotations

import csv
import io
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from comparable_runs import judged, make_masks, make_result, write_run
from conftest import ROOT
from hydra import compose, initialize_config_dir

from mechint import analyze, compare_variants, config
from mechint.api import comparison_figures, describe_settings
from mechint.comparison.job import Output, leave_study
from mechint.comparison.study import Study, read_study
from mechint.comparison.study_report import study_markdown
from mechint.data import TextFiles
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.reporting import Visualizer
from mechint.reporting.wording import text
from mechint.runtime.files import write_json

HALF, QUARTER = [(8, 8)] * 3, [(4, 4)] * 3


def grid(root: Path) -> Path:
    """Two checkpoints, two sparsities, two seeds, as a sweep leaves them."""
    number = 0
    for name in ("a", "b"):
        for kept in (HALF, QUARTER):
            for seed in (0, 1):
                told = {"checkpoint__name": name, "checkpoint__sha256": 32 * name}
                loss = 2.0 + seed + (name == "b") * 10 + (kept is QUARTER)
                write_run(root / str(number), kept, seed=seed, loss=loss, **told)
                number += 1
    return root


def test_runs_are_grouped_and_averaged_over_seeds(tmp_path: Path) -> None:
    study = read_study(grid(tmp_path))
    assert study.groups.index.tolist() == ["a", "b"]
    assert not study.flags
    assert not study.notes
    a, b = study.curve("a"), study.curve("b")
    assert a["sparsity"].tolist() == [0.5, 0.75]
    assert a["kv_bytes_per_token"].tolist() == [2 * 48, 2 * 24]
    assert study.groups["dense_kv_bytes"]["a"] == 2 * 96
    point = b.iloc[1]
    assert (point["loss_low"], point["loss"], point["loss_high"], point["n"]) == (13.0, 13.5, 14.0, 2)
    assert point["loss_sd"] == pytest.approx(0.5**0.5)
    assert a["faithfulness"].iloc[0] == pytest.approx((0.75 + 0.5) / 2)


def test_equal_keys_and_values_are_stored_once(tmp_path: Path) -> None:
    stored = {"total": 48, "kept": 30}
    write_run(tmp_path / "0", HALF, channels={"total": 96, "kept": 48, "stored": stored})
    study = read_study(tmp_path)
    assert study.points["kv_bytes_per_token"].tolist() == [2 * 30]
    assert study.groups["dense_kv_bytes"].tolist() == [2 * 48]


def test_gates_of_runs_and_of_what_sums_them_up_are_in_every_table(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    gates = ["faithfulness >= 0.9", "kl <= 0.1"]
    for seed, verdict in enumerate([judged(True, True), judged(True, False), judged(False, False)]):
        write_run(root / str(seed), HALF, seed=seed, verdict=verdict, config__gates=gates)
    write_run(root / "without", QUARTER)  # gates make no other curve
    write_run(root / "sure", HALF, verdict=judged(False, True), nested=[{"directory": "0"}])
    study = read_study(root)
    assert study.groups.index.tolist() == ["a"]
    assert study.runs["verdict"].fillna("").tolist() == ["GO", "NO_GO", "NO_GO", ""]
    written = {path.name: path for path in leave_study(study, [], Output(directory=tmp_path / "out"))}
    told = "1 GO, 2 NO_GO: kl <= 0.1 (2), faithfulness >= 0.9 (1)"
    rows = list(csv.DictReader(io.StringIO(written["table.csv"].read_text())))
    assert [row["gates"] for row in rows] == [told, ""]
    table = written["table.md"].read_text()
    assert f"| {text(told)} |\n" in table
    assert "| sure | NO\\_GO | faithfulness &gt;= 0.9 |" in table
    content = json.loads(written["comparison.json"].read_text())
    assert content["groups"][0]["points"][0]["runs"][1]["failed_gates"] == "kl <= 0.1"
    assert [row["directory"] for row in content["judged"]] == ["sure"]
    page = written["report.html"].read_text()
    assert page.count("<td>NO_GO</td><td>faithfulness &gt;= 0.9; kl &lt;= 0.1</td>") == 1
    assert page.count("<td>NO_GO</td><td>faithfulness &gt;= 0.9</td>") == 1


def test_runs_on_tasks_show_the_faithfulness_that_gates_go_by(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for seed, faithful in enumerate((0.5, 0.7)):
        write_run(root / str(seed), HALF, seed=seed, circuit={"faithfulness": faithful})
    study = read_study(root)
    point = study.points.iloc[0]
    assert (point["task_faithfulness"], point["faithfulness"]) == (pytest.approx(0.6), pytest.approx(0.75))
    written = {path.name: path for path in leave_study(study, [], Output(directory=tmp_path / "out"))}
    assert "| faithfulness of the logit difference |" in written["table.md"].read_text()
    assert "| 0.60 ± 0.14 |" in written["table.md"].read_text()
    assert '<td class="n" data-value="0.7">0.700</td>' in written["report.html"].read_text()


def test_no_table_tells_of_conditions_that_nobody_set(tmp_path: Path) -> None:
    study = read_study(grid(tmp_path / "tree"))
    written = leave_study(study, [], Output(directory=tmp_path / "out"))
    assert not any("gates" in path.read_text().lower() for path in written if path.suffix in (".csv", ".md"))


def test_bases_are_curves_named_after_them(tmp_path: Path) -> None:
    for number, name in enumerate(("channels", "principal")):
        basis = {"keys": name, "values": name, "where": "after_rope"}
        told = {"basis": basis, "config__basis": {"_target_": f"mechint.methods.{name}", "passes": number}}
        for seed in (0, 1):
            write_run(tmp_path / f"{number}{seed}", HALF, seed=seed, **told)
    study = read_study(tmp_path)
    assert study.groups.index.tolist() == ["a · basis=channels", "a · basis=principal"]
    assert study.points["iou"].notna().tolist() == [True, False], (
        "directions of two fits are not the same ones"
    )


def test_curves_are_told_apart_by_as_few_options_as_will_do(tmp_path: Path) -> None:
    lr = {"_target_": "torch.optim.Adam", "lr": 0.5}
    write_run(tmp_path / "0", HALF)
    write_run(tmp_path / "1", HALF, mask__method="HardConcrete", config__optimizer=lr)
    write_run(tmp_path / "2", HALF, mask__method="HardConcrete", mask__unit="head", config__optimizer=lr)
    write_run(tmp_path / "3", HALF, checkpoint__sha256="bb" * 32, config__device="cuda")
    study = read_study(tmp_path)
    assert study.groups.index.tolist() == [
        "a aaaaaaaa · TopK · unit=channel",
        "a aaaaaaaa · HardConcrete · unit=channel",
        "a aaaaaaaa · HardConcrete · unit=head",
        "a bbbbbbbb · TopK · unit=channel",
    ]
    assert any("compare them by KV bytes" in flag for flag in study.flags)


def test_a_swept_option_makes_a_curve_of_its_own(tmp_path: Path) -> None:
    for number, lr in enumerate((0.1, 0.2)):
        write_run(tmp_path / str(number), HALF, config__optimizer={"_target_": "a.b.SGD", "lr": lr})
    assert read_study(tmp_path).groups.index.tolist() == [
        "a · optimizer.lr=0.1",
        "a · optimizer.lr=0.2",
    ]


def test_different_evaluation_data_never_share_a_point(tmp_path: Path) -> None:
    write_run(tmp_path / "0", HALF, seed=0)
    write_run(tmp_path / "1", HALF, seed=1, dataset__evaluation_digest="ff" * 32)
    study = read_study(tmp_path)
    assert study.points["n"].tolist() == [1, 1]
    assert study.flags[0].startswith("Different evaluation data")
    assert "evaluation data ffffffff" in study.groups.index[1]
    assert "Read this first" in study_markdown(study, [])


def damage(path: Path) -> None:
    """Cut a file in the middle."""
    text = path.read_text()
    path.write_text(text[: len(text) // 2])


def test_runs_without_numbers_are_listed_and_not_fatal(tmp_path: Path) -> None:
    write_run(tmp_path / "0", HALF)
    write_run(tmp_path / "1", HALF, seed=1, status="failed", error="UserError: no\nmemory")
    write_run(tmp_path / "2", HALF, seed=2, status="running")
    damage(write_run(tmp_path / "3", HALF, seed=3) / "result.json")
    write_run(tmp_path / "4", HALF, seed=4, schema_version=99)
    write_run(tmp_path / "5", HALF, seed=5, metrics={})
    write_json(tmp_path / "6" / "result.json", {"accuracy": 1.0})
    (tmp_path / "10").mkdir()
    (tmp_path / "10" / "result.json").write_text("[1]")
    write_run(tmp_path / ".trash" / "7", HALF, seed=7)
    write_run(tmp_path / "wandb" / "8", HALF, seed=8)
    study = read_study(tmp_path)
    assert len(study.runs) == 1
    assert [(str(run.directory), run.status) for run in study.unfinished] == [
        ("1", "failed"),
        ("2", "running"),
        ("3", "unreadable"),
        ("4", "unreadable"),
        ("5", "unreadable"),
        ("6", "unreadable"),
        ("10", "unreadable"),
    ]
    assert study.unfinished[0].reason == "UserError: no memory"
    assert "did not end" in study.unfinished[1].reason
    report = study_markdown(study, [])
    assert "1 finished runs, 1 failed, 1 running, 5 unreadable" in report
    assert "| 1 | failed | UserError: no memory |" in report


def test_of_repeated_runs_the_newest_counts(tmp_path: Path) -> None:
    write_run(tmp_path / "new", HALF, loss=3.0, finished="2026-02-02T00:00:00+00:00")
    write_run(tmp_path / "old", HALF, loss=2.0)
    study = read_study(tmp_path)
    assert study.runs["directory"].tolist() == ["new"]
    assert "repeats it" in study.notes[0]


def test_a_loss_that_is_not_finite_is_in_no_curve_and_said(tmp_path: Path) -> None:
    write_run(tmp_path / "0", HALF)
    write_run(tmp_path / "1", QUARTER, loss=float("nan"))
    study = read_study(tmp_path)
    assert study.points["loss"].isna().tolist() == [False, True]
    assert any("No finite loss: 1 finished" in flag for flag in study.flags)


@pytest.mark.parametrize("content", [None, "empty", "failed"])
def test_nothing_to_compare_is_an_error(tmp_path: Path, content: str | None) -> None:
    root = tmp_path / "tree"
    if content:
        root.mkdir()
    if content == "failed":
        write_run(root / "0", HALF, status="failed", error="x")
    with pytest.raises(UserError) as error:
        read_study(root)
    assert "\n" not in str(error.value)


class OneFigure:
    """Stands for a figure."""

    def draw(self, study: Study, directory: Path, dpi: int) -> list[Path]:
        path = directory / "pareto.png"
        path.write_bytes(str(len(study.groups)).encode())
        return [path]


def test_what_a_study_leaves(tmp_path: Path) -> None:
    study = read_study(grid(tmp_path / "tree"))
    written = leave_study(study, [OneFigure()], Output(directory=tmp_path / "tree" / "comparison"))
    assert [path.name for path in written] == [
        "pareto.png",
        "table.csv",
        "table.md",
        "report.html",
        "comparison.json",
    ]
    rows = list(csv.DictReader(io.StringIO(written[1].read_text())))
    assert [(row["group"], row["sparsity"], row["seeds"]) for row in rows] == [
        ("a", "0.5", "0 1"),
        ("a", "0.75", "0 1"),
        ("b", "0.5", "0 1"),
        ("b", "0.75", "0 1"),
    ]
    assert float(rows[0]["loss"]) == 2.5
    content = json.loads(written[-1].read_text())
    point = content["groups"][1]["points"][0]
    assert (point["loss"], point["loss_sd"]) == (12.5, pytest.approx(0.5**0.5))
    assert [run["loss"] for run in point["runs"]] == [12.0, 13.0]
    assert point["agreement"]["iou"]["n"] == 1
    assert len(read_study(tmp_path / "tree").runs) == 8  # it does not read what it wrote


@pytest.mark.slow
def test_a_thousand_runs_are_read_in_seconds(tmp_path: Path) -> None:
    masks = make_masks([(8, 8)] * 32)
    result = make_result(masks)
    for number in range(1000):
        result["config"]["seed"], result["config_digest"] = number, str(number)
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "result.json").write_text(json.dumps(result, indent=2))
    start = time.process_time()
    study = read_study(tmp_path)
    assert time.process_time() - start < 10
    assert len(study.runs) == 1000


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path) -> Path:
    """Real runs of the tiny model that differ in the seed."""
    root = tmp_path_factory.mktemp("seeds")
    (root / "text.txt").write_text("\n\n".join(f"{n} green bottles hanging on the wall" for n in range(400)))
    text = TextFiles(
        path=str(root / "text.txt"), sequence_length=16, calibration_tokens=512, evaluation_tokens=256
    )
    for seed in (0, 1):
        run = analyze(
            str(byte_model_directory),
            root / "runs" / str(seed),
            target_sparsity=0.5,
            steps=2,
            seed=seed,
            dataset=text,
            trainer=MaskTrainer(batch_size=4),
            visualizer=Visualizer([]),
        )
        assert run.result.status == "done"
        assert run.result.config["dataset"]["sequence_length"] == 16
    return root / "runs"


@pytest.mark.slow
def test_python_compares_variants_of_any_name_and_draws_all_figures(two_seeds: Path, tmp_path: Path) -> None:
    comparison = compare_variants({"Baseline": two_seeds / "0", "K=V^T": two_seeds / "1"}, tmp_path, dpi=40)
    assert list(comparison.differences) == ["K=V^T"]
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "overall_summary.png",
        "delta_heatmap.png",
        "key_findings.png",
        "sparsity_comparison.png",
        "importance_comparison.png",
        "channels_comparison.png",
        "key_findings.txt",
        "variant_comparison.md",
        "comparison.json",
    } <= names
    assert "wandb" not in names


@pytest.mark.slow
def test_python_logs_to_the_project_that_is_named(
    two_seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects: list[Any] = []

    def wandb_logger(project: str | None) -> Any:
        projects.append(project)
        from mechint.loggers import Logger

        return Logger()

    monkeypatch.setattr("mechint.api.WandbLogger", wandb_logger)
    directories = {"A": two_seeds / "0", "B": two_seeds / "1"}
    compare_variants(directories, tmp_path / "0", project_name="mine", use_wandb=True, figures=[])
    compare_variants(directories, tmp_path / "1", project_name="mine", figures=[])
    compare_variants(directories, tmp_path / "2", use_wandb=True, figures=[])
    assert projects == ["mine", None], "without a name WANDB_PROJECT may give it"


def compare(directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The experiment, as a user runs it."""
    command = [sys.executable, str(ROOT / "experiments" / "compare.py"), *overrides]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_the_experiment_reads_names_from_a_file(two_seeds: Path, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text(f"K=V^T: {two_seeds / '1'}\nBase line: {two_seeds / '0'}\n")
    done = compare(tmp_path, "variants=names.yaml", "baseline='Base line'", "output_dir=out", "dpi=40")
    assert done.returncode == 0, done.stderr
    assert "K=V^T against Base line: what the masks cost" in done.stdout
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["baseline"] == "Base line"
    assert (tmp_path / "out" / "delta_heatmap.png").exists()


@pytest.mark.slow
def test_the_experiment_draws_a_tree(two_seeds: Path, tmp_path: Path) -> None:
    done = compare(tmp_path, f"tree={two_seeds}", "output_dir=out", "dpi=40")
    assert done.returncode == 0, done.stderr
    assert "2 finished runs" in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"pareto.png", "table.csv", "table.md", "comparison.json"} <= names


@pytest.mark.slow
def test_nothing_to_do_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    done = compare(tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: give one of 'variants={Baseline: DIR0, KV-Tying: DIR1}', tree=DIR and "
        "'circuits={ioi: DIR0, pronouns: DIR1}'\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_compare_that_fails_leaves_no_directory(tmp_path: Path) -> None:
    done = compare(tmp_path, "variants={A: nothing, B: nowhere}", "output_dir=out/of/it")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_line_names_variants_and_lists() -> None:
    config.register()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base=config.VERSION_BASE):
        composed = compose(
            "compare", ["variants={Baseline: runs/a-1, KV-Tying: [b, 'c d'], 3: e}", "baseline=3"]
        )
    variants = runpy.run_path(str(ROOT / "experiments" / "compare.py"))["variants"]
    assert variants(composed.variants) == {"Baseline": "runs/a-1", "KV-Tying": ["b", "c d"], "3": "e"}
    assert composed.baseline == "3"
    for wrong in ("no.yaml", [1, 2]):
        with pytest.raises(UserError):
            variants(wrong)


def test_python_and_the_experiments_have_the_same_defaults() -> None:
    config.register()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base=config.VERSION_BASE):
        figures = compose("compare").variant_figures
        analysis = config.build_analysis(compose("analyze", ["visualizer.dpi=150"]))
    assert [figure._target_.rsplit(".", 1)[-1] for figure in figures] == [
        type(figure).__name__ for figure in comparison_figures()
    ]
    recorded: dict[str, Any] = {}

    def run(self: Any, *_: Any, **__: Any) -> None:
        recorded.update(vars(self))
        raise UserError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechint.analysis.single.Analysis.run", run)
        with pytest.raises(UserError, match="seen"):
            analyze()
    composed = describe_settings(vars(analysis))
    assert composed.pop("logger")  # metrics.jsonl is part of every run, with or without its logger
    ours = describe_settings(recorded)
    assert ours.pop("logger") == []
    assert ours == composed


def test_the_configuration_of_compare_fits_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config.register()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base=config.VERSION_BASE):
        composed = compose(
            "compare", ["logger=[wandb,jsonl]", "logger.project=mine"], return_hydra_config=True
        )
    assert composed.hydra.sweep.dir.startswith("outputs/comparisons/")
    drawn = [config.build(figure).filename for figure in (*composed.variant_figures, *composed.tree_figures)]
    assert sorted(drawn) == [
        "channels_comparison.png",
        "delta_heatmap.png",
        "importance_comparison.png",
        "key_findings.png",
        "kl_by_sparsity.png",
        "overall_summary.png",
        "pareto.png",
        "sparsity_comparison.png",
    ]
    assert [config.build(sink).name for sink in composed.logger.sinks.values()] == ["wandb", "jsonl"]
    assert composed.logger.sinks.wandb.project == "mine"


def test_importing_the_package_is_quick() -> None:
    code = "import sys, mechint; assert 'torch' not in sys.modules; assert 'hydra' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
