"""Sweeps: their jobs, failures, what is left to do when one is started again, and what runs share."""

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra_application import Ended, Experiment, experiment

from mechint import config as configuration
from mechint.analysis import preparation
from mechint.checkpoints import CheckpointLoader
from mechint.config import errors
from mechint.config.sweeps import Sweep, slurm_threads, succeeded, table, threads_per_job
from mechint.learning import MaskTrainer
from mechint.loggers import WandbLogger
from mechint.results.directories import clear_run, job_name
from mechint.runtime import device
from mechint.runtime.device import pick_device

ODD_NAMES = [
    "(round) [square] {curly}.pt",
    "a b.pt",
    "back\\slash.pt",
    "it's, \\'quoted\\'.pt",
    "lr=0.1,seed=3.pt",
    "null",
    'say "x=1".pt',
    "step_2.pt",
    "step_10.pt",
    "tail\\",
    "~1.pt",
]


@pytest.fixture
def analyze(tmp_path: Path) -> Iterator[Experiment]:
    """Runs experiments/analyze.py below tmp_path."""
    with experiment(tmp_path) as run:
        yield run


def result(directory: Path) -> dict[str, Any]:
    """The result.json of a run."""
    return json.loads((directory / "result.json").read_text())


def statuses(ended: Ended) -> list[str]:
    """Status and directory of each job in the table at the end of a sweep."""
    lines = ended.out[ended.out.rindex("\nsweep ") :].splitlines()
    return [" ".join(line.split()[1:3]) for line in lines if line.split()[:1] and line.split()[0].isdigit()]


def copies(model: Path, *targets: Path) -> None:
    """Put a checkpoint directory in several places, each with weights of its own."""
    for number, target in enumerate(targets):
        shutil.copytree(model, target)
        configuration_file = target / "config.json"
        content = json.loads(configuration_file.read_text())
        configuration_file.write_text(json.dumps(content | {"rms_norm_eps": 1e-6 * (1 + number)}))


def break_weights(model: Path) -> None:
    """Cut a checkpoint's weights short."""
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def test_odd_file_names_come_through_in_natural_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ODD_NAMES:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    parser = OverridesParser.create()
    sweep = parser.parse_override("checkpoint=" + configuration.files("*"))
    jobs_ = [parser.parse_override(f"checkpoint={value}") for value in sweep.sweep_string_iterator()]
    assert [job.value() for job in jobs_] == ODD_NAMES


@pytest.mark.slow
def test_a_sweep_with_one_broken_checkpoint_among_three(
    analyze: Experiment, byte_model_directory: Path
) -> None:
    models = [analyze.directory / "ckpts" / name for name in ("lr=0.1, [it's]", "step_2", "step_10")]
    copies(byte_model_directory, *models)
    break_weights(models[1])
    command = (
        "-m",
        "sweep=checkpoints",
        "checkpoint_glob=ckpts/*",
        "target_sparsity=0.5,0.9",
        "output_dir=out",
    )

    first = analyze(*command)
    assert first.code == 1
    assert statuses(first) == ["done 0", "done 1", "failed 2", "failed 3", "done 4", "done 5"]
    assert "2 failed" in first.out
    assert "model.safetensors is not a safetensors file, or damaged" in first.out
    assert "Traceback" not in first.out + first.err
    out = analyze.directory / "out"
    failed = result(out / "2")
    assert failed["status"] == "failed"
    assert failed["error"].startswith("UserError: ")
    assert "Traceback" in failed["traceback"]
    assert "Traceback" in (out / "2" / "analyze.log").read_text()
    assert "Traceback" not in (out / "0" / "analyze.log").read_text()
    assert result(out / "0")["checkpoint"]["source"] == str(models[0])
    assert sorted(path.name for path in out.iterdir()) == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "multirun.yaml",
        "report.html",
    ]

    before = {number: (out / number / "result.json").read_bytes() for number in "0145"}
    shutil.copy(models[0] / "model.safetensors", models[1])
    second = analyze(*command)
    assert second.code == 0, second.err
    assert statuses(second) == ["skipped 0", "skipped 1", "done 2", "done 3", "skipped 4", "skipped 5"]
    assert before == {number: (out / number / "result.json").read_bytes() for number in "0145"}
    assert result(out / "2")["error"] is None
    third = analyze(
        "-m", "sweep=checkpoints", "checkpoint_glob=ckpts/s*", "target_sparsity=0.9", "output_dir=out"
    )
    assert statuses(third) == ["skipped 3", "skipped 5"]  # however they were found


@pytest.mark.slow
def test_a_job_that_fails_before_it_begins_leaves_its_error_too(
    analyze: Experiment, byte_model_directory: Path
) -> None:
    ended = analyze("-m", f"checkpoint={byte_model_directory}", "mask.key_sparsity=7,null", "output_dir=out")
    assert ended.code == 1
    assert statuses(ended) == ["failed 0", "done 1"]
    failed = result(analyze.directory / "out" / "0")
    assert "mask.key_sparsity=7" in failed["error"]
    assert failed["config"]["mask"]["key_sparsity"] == 7


@pytest.mark.slow
def test_another_grid_finds_finished_runs_and_never_replaces_one(
    analyze: Experiment, byte_model_directory: Path
) -> None:
    common = ("-m", f"checkpoint={byte_model_directory}", "output_dir=out")
    assert analyze(*common, "target_sparsity=0.5,0.9").code == 0
    assert statuses(analyze(*common, "target_sparsity=0.9,0.25,0.5")) == [
        "skipped 1",
        "done 1-2",
        "skipped 0",
    ]
    # The table is about this sweep alone, and presentation does not make another run.
    assert statuses(analyze(*common, "target_sparsity=0.25", "logger=[]")) == ["skipped 1-2"]
    started = result(analyze.directory / "out" / "1-2")["started"]
    (analyze.directory / "out" / "1-2" / "result.json").touch()
    assert statuses(analyze(*common, "target_sparsity=0.25", "resume=false")) == ["done 1-2"]
    targets = {
        path.parent.name: result(path.parent)["config"]["target_sparsity"]
        for path in (analyze.directory / "out").glob("*/result.json")
    }
    assert targets == {"0": 0.5, "1": 0.9, "1-2": 0.25}
    assert result(analyze.directory / "out" / "1-2")["started"] >= started


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_stopped(
    analyze: Experiment, byte_model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, calls = MaskTrainer.train, []

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **keywords)

    monkeypatch.setattr(MaskTrainer, "train", interrupted)
    command = ("-m", f"checkpoint={byte_model_directory}", "seed=0,1,2", "output_dir=out")
    first = analyze(*command)
    assert first.code == 130
    assert "never started" in first.out
    assert [line.split()[0] for line in statuses(first)] == ["done", "failed", "not"]
    out = analyze.directory / "out"
    # A process that is killed cannot even say that it failed.
    broken = (out / "1" / "result.json").read_text()
    (out / "1" / "result.json").write_text(broken.replace('"failed"', '"running"'))
    assert statuses(analyze(*command)) == ["skipped 0", "done 1", "done 2"]
    assert len(calls) == 4


@pytest.mark.slow
def test_a_single_run_is_repeated_only_on_demand_and_keeps_its_directory(
    analyze: Experiment, byte_model_directory: Path
) -> None:
    command = (f"checkpoint={byte_model_directory}", "output_dir=out")
    assert analyze(*command).code == 0
    out = analyze.directory / "out"
    before = (out / "result.json").read_bytes()
    again = analyze(*command, "logger=[]")
    assert again.code == 0
    assert "already finished" in again.out
    assert (out / "result.json").read_bytes() == before

    overrides = (out / ".hydra" / "overrides.yaml").read_bytes()
    other = analyze(*command, "target_sparsity=0.25")
    assert other.code == 2
    assert other.err.count("\n") == 1
    assert "holds another run (target_sparsity=None there, 0.25 here)" in other.err
    assert (out / "result.json").read_bytes() == before
    assert (out / ".hydra" / "overrides.yaml").read_bytes() == overrides

    (out / "kv_channel_importance.png").touch()  # of a run that drew figures
    assert analyze(*command, "resume=false").code == 0
    assert not (out / "kv_channel_importance.png").exists()
    assert result(out)["metrics"] == json.loads(before)["metrics"]


@pytest.mark.slow
def test_a_changed_checkpoint_is_another_run(analyze: Experiment, byte_model_directory: Path) -> None:
    model = analyze.directory / "model"
    copies(byte_model_directory, model)
    assert analyze("checkpoint=model", "output_dir=out").code == 0
    copies(byte_model_directory, analyze.directory / "unused", analyze.directory / "changed")
    shutil.copy(
        analyze.directory / "changed" / "config.json", model
    )  # the same weights compute something else
    ended = analyze("checkpoint=model", "output_dir=out")
    assert ended.code == 2
    assert "the checkpoint's content differs" in ended.err


@pytest.mark.slow
def test_failed_runs_make_room_and_foreign_files_do_not(
    analyze: Experiment, byte_model_directory: Path
) -> None:
    broken = analyze.directory / "broken"
    copies(byte_model_directory, broken)
    break_weights(broken)
    assert analyze("checkpoint=broken", "output_dir=out").code == 2
    assert result(analyze.directory / "out")["status"] == "failed"
    assert analyze(f"checkpoint={byte_model_directory}", "output_dir=out").code == 0
    old = analyze.directory / "old"
    old.mkdir()
    (old / "final_masks.pt").write_bytes(b"of another program")
    refused = analyze(f"checkpoint={byte_model_directory}", "output_dir=old")
    assert refused.code == 2
    assert "another program" in refused.err
    assert (old / "final_masks.pt").read_bytes() == b"of another program"


def test_what_killed_processes_left_half_written_goes(tmp_path: Path) -> None:
    left = [".result.0a1b2c3d.json", ".model.h.0.attn_importance.0a1b2c3d.png", ".final_masks.0a1b2c3d.pt"]
    kept = [".hidden", ".notes.0a1b2c3d.txt", ".result.json", "mine.png"]
    for name in [*left, *kept]:
        (tmp_path / name).write_text("")
    clear_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_directories_of_jobs(tmp_path: Path) -> None:
    def put(name: str, status: str, digest: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "final_masks.pt").touch()
        (tmp_path / name / "result.json").write_text(json.dumps({"status": status, "config_digest": digest}))

    assert job_name(tmp_path, 0, "a") == "0"
    put("0", "done", "a")
    put("1", "running", "b")
    put("2", "failed", "c")
    put("3", "done", "d")
    assert job_name(tmp_path, 3, "a") == "0"  # done elsewhere
    assert job_name(tmp_path, 0, "b") == "0-2"  # perhaps still running elsewhere, so not there
    assert job_name(tmp_path, 1, "b") == "1"  # died, or was requeued
    assert job_name(tmp_path, 1, "e") == "1-2"
    assert job_name(tmp_path, 2, "e") == "2"
    assert job_name(tmp_path, 3, None) == "3-2"  # a checkpoint that cannot be read
    (tmp_path / "0" / "final_masks.pt").unlink()
    assert job_name(tmp_path, 5, "a") == "5"  # done, but its masks are gone


@pytest.mark.slow
def test_one_load_and_one_dense_measurement_per_checkpoint(
    analyze: Experiment, byte_model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, measure = CheckpointLoader.load, preparation.measure
    models: list[weakref.ref[Any]] = []
    alive: list[int] = []
    measured: list[list[str]] = []

    def counted_load(*arguments: Any) -> Any:
        gc.collect()
        alive.append(sum(model() is not None for model in models))
        checkpoint = load(*arguments)
        models.append(weakref.ref(checkpoint.model))
        return checkpoint

    def counted_measure(evaluator: Any, variants: dict[str, Any], *others: Any) -> Any:
        measured.append(list(variants))
        return measure(evaluator, variants, *others)

    monkeypatch.setattr(CheckpointLoader, "load", counted_load)
    monkeypatch.setattr(preparation, "measure", counted_measure)
    copies(byte_model_directory, analyze.directory / "m1", analyze.directory / "m2")
    sweep = analyze("-m", "checkpoint=m1,m2", "ablation=zero,mean", "seed=0,1", "output_dir=out")
    assert sweep.code == 0, sweep.out
    assert alive == [0, 0]  # two loads, and the first model was gone before the second came
    with_dense = [variants == ["dense", "empty", "masked", "complement"] for variants in measured]
    # The mean that the empty model is filled with is over calibration data, so it depends on the seed.
    assert with_dense == [True, False, True, True] * 2

    alone = analyze("checkpoint=m2", "ablation=mean", "seed=1", "output_dir=alone")
    assert alone.code == 0
    assert (
        result(analyze.directory / "alone")["metrics"] == result(analyze.directory / "out" / "7")["metrics"]
    )


@pytest.mark.slow
def test_an_experiment_file_drives_a_batch_alone(analyze: Experiment, byte_model_directory: Path) -> None:
    (analyze.directory / "mine" / "experiment").mkdir(parents=True)
    (analyze.directory / "mine" / "experiment" / "nightly.yaml").write_text(
        "# @package _global_\n"
        f"checkpoint: {byte_model_directory}\n"
        "output_dir: nightly\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {target_sparsity: '0.5,0.9', seed: 'range(2)'}}}\n"
    )
    ended = analyze("--config-dir", "mine", "experiment=nightly")
    assert ended.code == 0, ended.err
    assert statuses(ended) == ["done 0", "done 1", "done 2", "done 3"]
    assert result(analyze.directory / "nightly" / "3")["config"]["seed"] == 1
    # The command line has the last word.
    assert statuses(analyze("--config-dir", "mine", "experiment=nightly", "seed=0")) == [
        "skipped 0",
        "skipped 2",
    ]


@pytest.mark.slow
def test_a_sweep_without_output_dir_has_a_directory_of_its_own(
    analyze: Experiment, byte_model_directory: Path
) -> None:
    for _ in range(2):
        assert analyze("-m", f"checkpoint={byte_model_directory}").code == 0
    assert len(list(analyze.directory.glob("outputs/sweeps/*/0/result.json"))) == 2


CANNOT_BE_SWEPT = [
    (["-m", "checkpoint=glob(ckpts/*.pt)"], "-m sweep=checkpoints 'checkpoint_glob=ckpts/*.pt'"),
    (["-m", "sweep=checkpoints", "checkpoint_glob=ckpts/*.pt"], "no file matches"),
    (["-m", "seed=half,1"], "'half' of type 'str' could not be converted to Integer"),
    (["-m", "hydra/launcher=joblibb"], "pip install -e '.[parallel]'"),
]
MORE_THAT_CANNOT = [
    (["checkpoint=ckpts/*.pt"], "-m sweep=checkpoints 'checkpoint_glob=ckpts/*.pt'"),
    (["-m", "mask=glob(nothing*)"], "mask=glob(nothing*) matches nothing"),
    (["sweep=checkpoints", "checkpoint_glob=ckpts/*.pt"], "add -m"),
    (["-m", "mask=magic,topk"], "Could not find 'mask/magic'"),
    (["seed=9223372036854775808"], "seed=9223372036854775808"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [*CANNOT_BE_SWEPT, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_THAT_CANNOT)],
)
def test_what_cannot_be_swept_is_one_line_and_exit_code_2(
    analyze: Experiment, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(errors.LAUNCHER_EXTRAS, "joblibb", "parallel")  # as if it were not installed
    ended = analyze(*arguments)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.out


@pytest.mark.slow
def test_a_sweep_is_one_group_for_loggers_also_when_it_is_resumed(
    analyze: Experiment, byte_model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[tuple[str | None, str | None, str]] = []
    monkeypatch.setattr(
        WandbLogger, "start", lambda self, run: groups.append((run.group, self.group, run.name))
    )
    for method in ("log", "summary", "table", "figures", "masks"):
        monkeypatch.setattr(WandbLogger, method, lambda self, *arguments, **keywords: None)
    common = ("-m", f"checkpoint={byte_model_directory}", "output_dir=study")
    assert analyze(*common, "logger=wandb", "seed=0,1").code == 0
    assert analyze(*common, "logger=[wandb,jsonl]", "seed=0,1,2", "logger.group=mine").code == 0
    assert groups == [("study", None, "study/0"), ("study", None, "study/1"), ("study", "mine", "study/2")]
    for logger in ("none", "[]"):
        assert analyze(*common, f"logger={logger}", "seed=3", "resume=false").code == 0
    assert len(groups) == 3


def test_the_table_tells_what_became_of_every_job(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["seed=0", "seed=1", "seed=2", "seed=3", "seed=4"])
    assert not sweep.begun
    sweep.note(0, "done", tmp_path / "0")
    sweep.note(1, "skipped", tmp_path / "7")
    sweep.note(2, "failed", tmp_path / "2", "ValueError: no")
    sweep.note(3, "running", tmp_path / "3")
    other = Sweep(tmp_path, ["seed=9"])
    assert sweep.begun
    assert not other.begun
    outcomes = sweep.outcomes()
    first, head, *lines = table(outcomes, tmp_path).splitlines()
    assert first == f"sweep {tmp_path}: 1 done, 1 skipped, 1 failed, 1 running, 1 not started"
    assert head.split() == ["job", "status", "directory", "overrides", "reason"]
    assert [" ".join(line.split()) for line in lines] == [
        "0 done 0 seed=0",
        "1 skipped 7 seed=1",
        "2 failed 2 seed=2 ValueError: no",
        "3 running 3 seed=3 died or still running",
        "4 not started seed=4 never started",
    ]
    assert {line.index("seed=") for line in lines} == {head.index("overrides")}
    assert not succeeded(outcomes)
    assert succeeded(outcomes[:2])
    sweep.note(0, "done", tmp_path / "0", gates="NO_GO: kl <= 0.1")
    assert table(sweep.outcomes(), tmp_path).splitlines()[1:4] == [
        "  job  status       directory  overrides  gates             reason",
        "  0    done         0          seed=0     NO_GO: kl <= 0.1",
        "  1    skipped      7          seed=1",
    ]
    sweep.end()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("launcher", "parallel", "count", "threads"),
    [
        ("basic", 1, 9, None),
        ("joblib", -1, 9, 1),
        ("joblib", -1, 2, 4),
        ("joblib", -3, 9, 1),
        ("joblib", 4, 9, 2),
        ("joblib", 16, 9, 1),
        ("submitit_local", 3, 3, 2),
        ("submitit_slurm", 3, 3, None),
    ],
)
def test_parallel_jobs_share_the_cores(
    launcher: str, parallel: int, count: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechint.config.sweeps.usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_per_job(launcher, parallel, count) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_per_job(launcher, parallel, count) is None


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "8"}, 4),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "8", "OMP_NUM_THREADS": "2"}, None),
    ],
)
def test_slurm_says_how_many_cores_a_job_has(
    environment: dict[str, str], threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert slurm_threads() == threads


def test_jobs_side_by_side_take_turns_on_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(device, "_turn", 0)
    assert pick_device("auto") == torch.device("cuda:0")
    device.take_turns(5)
    assert pick_device("auto") == torch.device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
