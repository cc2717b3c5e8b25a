"""The same sweep in one process, in several, and on a real Slurm of one node."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from hydra_application import FEW_TRIALS, SMALL, Experiment, experiment
from omegaconf import OmegaConf
from slurm_fixture import MiniSlurm, SlurmUnavailableError

from mechint.config import launching, tracking
from mechint.config.sweeps import Sweep
from mechint.results import load_masks
from mechint.runtime.signals import EXIT_CODE, Interruption

pytestmark = pytest.mark.slow

GRID = ["mask.key_sparsity=null,7"]  # the job with 7 fails
STATUSES = ["done", "failed"]


def needs(plugin: str, extra: str) -> pytest.MarkDecorator:
    """Skip where a launcher is not installed."""
    missing = importlib.util.find_spec(f"hydra_plugins.{plugin}") is None
    return pytest.mark.skipif(missing, reason=f"pip install -e '.[{extra}]'")


joblib = needs("hydra_joblib_launcher", "parallel")
submitit = needs("hydra_submitit_launcher", "slurm")


@pytest.fixture
def analyze(tmp_path: Path) -> Iterator[Experiment]:
    """Runs experiments/analyze.py below tmp_path."""
    with experiment(tmp_path) as run:
        yield run


@pytest.fixture(scope="session")
def slurm() -> Iterator[MiniSlurm]:
    """A private Slurm; tests that use it are skipped, with the reason, where it cannot start."""
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short, for the names of sockets
    slurm = MiniSlurm(root / "s")
    try:
        slurm.start()
    except SlurmUnavailableError as error:
        shutil.rmtree(root)
        if os.environ.get("REQUIRE_SLURM"):
            raise
        pytest.skip(f"slurm: {error}")
    yield slurm
    slurm.stop()
    shutil.rmtree(root)


def start(directory: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Start a sweep as a user would."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "analyze.py"), "-m", *SMALL, FEW_TRIALS, *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    """What it says until its end."""
    text, _ = process.communicate(timeout=300)
    return text


def results(sweep: Path) -> dict[str, dict[str, Any]]:
    """The result.json of every job's directory."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(sweep.glob("*/result.json"))}


def assert_equal_masks(first: Path, second: Path) -> None:
    """Both sweeps' finished job has the same masks and scores to the last bit."""
    here, there = (load_masks(sweep / "0" / "final_masks.safetensors") for sweep in (first, second))
    assert list(here) == list(there)
    for name, mask in here.items():
        for part in ("k_mask", "v_mask", "k_importance", "v_importance"):
            assert torch.equal(getattr(mask, part), getattr(there[name], part))


@pytest.fixture
def basic(analyze: Experiment, byte_model_directory: Path) -> Path:
    """The sweep in one process."""
    ended = analyze("-m", f"checkpoint={byte_model_directory}", *GRID, "output_dir=basic")
    assert ended.code == 1
    return analyze.directory / "basic"


@joblib
def test_joblib_learns_the_same_masks(basic: Path, byte_model_directory: Path) -> None:
    arguments = [f"checkpoint={byte_model_directory}", *GRID, "output_dir=joblib"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    process = start(basic.parent, environment, *arguments, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    text = output(process)
    assert process.returncode == 1, text
    sweep = basic.parent / "joblib"
    assert [result["status"] for result in results(sweep).values()] == STATUSES
    assert "1 done, 1 failed" in text
    assert text.count("mask.key_sparsity=7 must lie in [0, 1]") == 2  # when it happened, and in the table
    assert "Traceback" not in text
    assert "Traceback" in (sweep / "1" / "analyze.log").read_text()
    assert_equal_masks(basic, sweep)
    threads = {result["cost"]["threads"] for result in results(sweep).values() if "cost" in result}
    assert threads == {max(1, len(os.sched_getaffinity(0)) // 2)}


@joblib
def test_three_workers_write_side_by_side(byte_model_directory: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "MECHINT_CACHE": str(tmp_path / "cache")}
    arguments = [f"checkpoint={byte_model_directory}", "seed=range(3)", "visualizer=none", "output_dir=out"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
    process = start(tmp_path, environment, *arguments, *launcher)
    text = output(process)
    assert process.returncode == 0, text
    assert "3 done" in text
    found = results(tmp_path / "out")
    assert [found[str(number)]["config"]["seed"] for number in range(3)] == list(range(3))
    assert {result["status"] for result in found.values()} == {"done"}
    assert len({result["process"]["pid"] for result in found.values()}) == 3
    assert len({result["dataset"]["evaluation_digest"] for result in found.values()}) == 1
    entries = list((tmp_path / "cache" / "tokens").iterdir())
    assert all((entry / "ids.npy").exists() for entry in entries)
    assert (
        len(entries) == 4
    )  # evaluation tokens, which all of them share, and calibration tokens of every seed
    assert not list((tmp_path / "out").rglob(".*.????????.*"))  # nothing half written


@submitit
def test_slurm_learns_the_same_masks(basic: Path, slurm: MiniSlurm, byte_model_directory: Path) -> None:
    arguments = [f"checkpoint={byte_model_directory}", *GRID, "output_dir=slurm"]
    process = start(basic.parent, slurm.environment, *arguments, "hydra/launcher=submitit_slurm")
    text = output(process)
    assert process.returncode == 1, text
    sweep = basic.parent / "slurm"
    assert [result["status"] for result in results(sweep).values()] == STATUSES
    assert "1 done, 1 failed" in text
    assert_equal_masks(basic, sweep)
    jobs = slurm.command("scontrol", "-o", "show", "job").splitlines()  # those of other tests are among them
    assert sum("JobName=analyze" in job and f"={sweep}/" in job for job in jobs) == 2
    assert not list(sweep.glob(".jobs-*"))


@submitit
def test_a_preempted_job_starts_over_and_a_killed_one_stops_no_other(
    slurm: MiniSlurm, byte_model_directory: Path, tmp_path: Path
) -> None:
    """Job 0 is cancelled, which submitit takes as a reason to give up; job 1 is sent away, requeued and goes on."""
    process = start(
        tmp_path,
        slurm.environment,
        *(
            f"checkpoint={byte_model_directory}",
            "steps=1000000,600",
            "trainer.log_every=1",
            "output_dir=out",
        ),
        *("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60"),
    )
    try:
        preempted = running_job(slurm, tmp_path / "out", 1)
        slurm.command("scancel", "--signal=USR2", preempted)
        slurm.command("scancel", running_job(slurm, tmp_path / "out", 0))
        text = output(process)
    finally:
        process.kill()
    assert process.returncode == 1, text
    assert "interrupted by SIGTERM" in text
    assert "1 done" in text
    assert "the sweep stopped early: UncompletedJobError" in text
    status = {name: result["status"] for name, result in results(tmp_path / "out").items()}
    assert status == {"0": "interrupted", "1": "done"}
    assert "Restarts=1" in slurm.command("scontrol", "-o", "show", "job", preempted)
    lines = (tmp_path / "out" / "1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(600))  # of both attempts, none twice
    resumed = results(tmp_path / "out")["1"]["resumed"]
    assert len(resumed) == 1
    assert 0 < resumed[0] < 600


@submitit
def test_after_a_job_died_the_others_are_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Job 1 above may be faster than submitit finds out about job 0."""
    from submitit import Job
    from submitit.core.utils import UncompletedJobError

    waited = []

    class Waiting(Job):  # type: ignore[type-arg]
        def __init__(self) -> None:
            pass

        def wait(self) -> None:
            waited.append(self)

        def __del__(self) -> None:
            pass

    def launch(error: type[Exception], count: int) -> None:
        jobs = [Waiting() for _ in range(count)]
        raise error(f"{len(jobs)} jobs, the first died")

    def main(error: type[Exception], count: int = 2) -> BaseException:
        with pytest.raises(error) as caught:
            launch(error, count)
        return caught.value

    launching._wait_for_the_others(main(ValueError))
    assert len(waited) == 0
    launching._wait_for_the_others(main(UncompletedJobError))
    assert len(waited) == 2
    assert capsys.readouterr().err == ""
    launching._wait_for_the_others(main(UncompletedJobError, count=0))
    assert "may still be queued or running" in capsys.readouterr().err


def test_a_requeue_whose_command_ends_with_the_job_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm ends all processes of a requeued job; submitit takes the end of the one that asked for it for an error."""

    def requeue(*_: object) -> None:
        raise subprocess.CalledProcessError(-15, ["scontrol", "requeue", "7"])

    def task(_: object) -> None:
        with Interruption():
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(10)

    monkeypatch.setattr(tracking, "choice", lambda _: "submitit_slurm")
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as end:
            tracking._run_job(task, OmegaConf.create(), Sweep(tmp_path, ["job"], None), 0, tmp_path / "0")
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert end.value.code == EXIT_CODE


def running_job(slurm: MiniSlurm, sweep: Path, number: int, timeout: float = 120) -> str:
    """Slurm's number of a sweep's job, once it learns."""
    metrics, end = sweep / str(number) / "metrics.jsonl", time.monotonic() + timeout
    while time.monotonic() < end:
        if metrics.exists() and metrics.stat().st_size:
            lines = slurm.command("squeue", "-h", "-o", "%F_%K", "--states=RUNNING").splitlines()
            # Not the job's own number: that of an array's last job stands for the whole array.
            return next(line for line in lines if line.endswith(f"_{number}"))
        time.sleep(0.2)
    raise AssertionError(f"job {number} did not begin: {slurm.command('squeue')}")
