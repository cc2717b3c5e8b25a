"""Loggers and the progress display: what arrives where, and that nothing of it can break a run."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from wandb_file import read_offline_run

from mechint.errors import UserError
from mechint.loggers import (
    JsonlLogger,
    Logger,
    LoggerGroup,
    Progress,
    RunInfo,
    TensorboardLogger,
    WandbLogger,
)

ROOT = Path(__file__).parent.parent
STAGES = ["start", "log", "summary", "table", "figures", "masks", "finish"]


@pytest.fixture(autouse=True)
def private_environment(monkeypatch, tmp_path):
    """No login, no settings and no network of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "XDG_", "NETRC")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def run(tmp_path) -> RunInfo:
    config = {"checkpoint": "bundled:baseline", "mask": {"unit": "channel"}, "seed": 0, "device": None}
    return RunInfo("docs_baseline", "sweep-1", "analyze", config, tmp_path / "output")


@pytest.fixture
def figure(tmp_path) -> Path:
    Image.new("RGB", (8, 4), (250, 0, 0)).save(tmp_path / "sparsity_curves.png")
    return tmp_path / "sparsity_curves.png"


@pytest.fixture
def mask(tmp_path) -> Path:
    (tmp_path / "final_masks.pt").write_bytes(b"masks")
    return tmp_path / "final_masks.pt"


def report_all(logger: Logger, run: RunInfo, figure: Path, mask: Path, steps: int = 3) -> str | None:
    """Everything that a run reports, with the number types that occur in one."""
    logger.start(run)
    for step in range(steps):
        loss = np.float32(2.0 - step) if step else torch.tensor(float("nan"))
        logger.log({"loss": loss, "sparsity": torch.tensor(0.25 * step), "temperature": None}, step)
    logger.summary({"masked": {"loss": np.float64(1.5)}, "faithfulness": 0.9})
    logger.table("layers", ["layer", "kept", "share"], [["h.0", 3, np.float32(0.5)], ["h.1", None, 0.25]])
    logger.figures([figure])
    logger.masks([mask])
    return logger.finish(True)


class Recorder(Logger):
    """Remembers the calls and fails in those that it is told to."""

    name = "recorder"

    def __init__(self, *failing: str) -> None:
        self.calls: list[str] = []
        for stage in STAGES:
            setattr(self, stage, self._stage(stage, stage in failing))

    def _stage(self, stage: str, fails: bool):
        def call(*_):
            self.calls.append(stage)
            if fails:
                raise OSError(28, "No space left on device", "/some/inner/path")

        return call


# ---------------------------------------------------------------------------------------------- group


@pytest.mark.parametrize("stage", STAGES)
def test_a_failing_logger_stops_neither_the_run_nor_the_others(stage, run, figure, mask, caplog):
    broken, healthy = Recorder(stage), Recorder()
    group = LoggerGroup([broken, healthy])

    report_all(group, run, figure, mask)

    assert healthy.calls == ["start", "log", "log", "log", "summary", "table", "figures", "masks", "finish"]
    assert broken.calls.count(stage) == 1
    assert broken.calls[-1] == "finish"  # also a broken logger may close its files
    assert len(caplog.records) == 1
    assert "the logger recorder is switched off" in caplog.records[0].getMessage()
    assert len(group.not_logged) == 1


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        (["start"], ["everything"]),
        (["log"], ["metrics from step 0, summary, table layers, figures, masks"]),
        (["figures"], ["figures, masks"]),
        (["masks", "finish"], ["masks, end of the run"]),
        ([], []),
    ],
)
def test_the_group_says_what_was_not_logged(failing, expected, run, figure, mask):
    group = LoggerGroup([Recorder(*failing)])
    report_all(group, run, figure, mask)
    assert group.not_logged == [f"recorder: {parts} (No space left on device)" for parts in expected]


# ---------------------------------------------------------------------------------------------- jsonl


def test_jsonl_has_a_line_per_step_that_can_be_read_during_the_run(run):
    logger = JsonlLogger()
    logger.start(run)
    logger.log({"loss": float("nan"), "sparsity": np.float32(0.5), "temperature": None}, 0)
    logger.log({"loss": torch.tensor(1.5), "sparsity": math.inf, "changed_units": 3}, 5)

    lines = [json.loads(line) for line in (run.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 0, "loss": None, "sparsity": 0.5, "temperature": None},
        {"step": 5, "loss": 1.5, "sparsity": None, "changed_units": 3},
    ]
    logger.finish(True)

    logger.start(run)
    logger.finish(True)
    assert (run.output_dir / "metrics.jsonl").read_text() == ""


# ---------------------------------------------------------------------------------------- tensorboard


def test_tensorboard_run_read_back(run, figure, mask):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    report_all(TensorboardLogger(), run, figure, mask)

    events = EventAccumulator(str(run.output_dir / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert math.isnan(losses.pop(0))
    assert losses == {1: 1.0, 2: 0.0}
    assert [event.value for event in events.Scalars("summary/masked/loss")] == [1.5]
    assert "temperature" not in events.Tags()["scalars"]
    (image,) = events.Images("figures/sparsity_curves")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert pixels.shape == (4, 8, 3)
    assert (pixels[0, 0] == (250, 0, 0)).all()
    text = {
        tag: make_ndarray(events.Tensors(f"{tag}/text_summary")[0].tensor_proto)[0].decode()
        for tag in ("config", "layers")
    }
    assert '"unit": "channel"' in text["config"]
    assert text["layers"].splitlines()[2:] == ["| h.0 | 3 | 0.5 |", "| h.1 | None | 0.25 |"]


def test_tensorboard_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("mechint.loggers.tensorboard_logger.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tensorboard\]'"):
        TensorboardLogger()


# ---------------------------------------------------------------------------------------------- wandb


@pytest.mark.slow
def test_wandb_run_read_back(run, figure, mask, tmp_path, capfd):
    logger = LoggerGroup([WandbLogger(project="mine", tags=["paper"])])
    line = report_all(logger, run, figure, mask)

    stored = read_offline_run(run.output_dir / "wandb")
    assert logger.not_logged == []
    assert line == f"The W&B run was kept offline; upload it with: wandb sync {stored.directory}"
    assert (stored.project, stored.group, stored.job_type) == ("mine", "sweep-1", "analyze")
    assert (stored.name, stored.tags, stored.exit_code) == ("docs_baseline", ["paper"], 0)
    assert run.config.items() <= stored.config.items()

    assert sorted(stored.history) == [0, 1, 2]
    assert math.isnan(float(stored.history[0]["loss"]))
    assert [stored.history[step]["loss"] for step in (1, 2)] == [1.0, 0.0]
    assert [stored.history[step]["sparsity"] for step in (0, 1, 2)] == [0.0, 0.25, 0.5]
    assert "temperature" not in stored.history[1]
    assert stored.summary["masked/loss"] == 1.5

    table = json.loads(stored.media(stored.history[2]["layers"]).read_text())
    assert table["columns"] == ["layer", "kept", "share"]
    assert table["data"] == [["h.0", 3, 0.5], ["h.1", None, 0.25]]
    image = stored.media(stored.history[2]["figures/sparsity_curves"])
    assert image.read_bytes() == figure.read_bytes()
    assert stored.artifacts["mask"] == {"final_masks.pt": mask}
    assert stored.artifacts["run_table"]["layers.table.json"].is_relative_to(run.output_dir)

    assert not (tmp_path / "home" / ".local").exists()
    assert capfd.readouterr() == ("", "")  # nothing that could break a progress bar or a pipe


@pytest.mark.slow
def test_wandb_settings_are_the_loggers_then_the_environments_then_the_runs(run, tmp_path, monkeypatch):
    def stored(**settings):
        logger = WandbLogger(mode="offline", **settings)
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        logger.start(replace(run, output_dir=directory))
        logger.finish(True)
        return read_offline_run(directory / "wandb")

    plain = stored()
    assert (plain.project, plain.group, plain.name) == ("mechint", "sweep-1", "docs_baseline")
    for name in ("PROJECT", "RUN_GROUP", "NAME", "JOB_TYPE"):
        monkeypatch.setenv(f"WANDB_{name}", f"my-{name}")
    found = stored()
    assert (found.project, found.group, found.name) == ("my-PROJECT", "my-RUN_GROUP", "my-NAME")
    assert found.job_type == "my-JOB_TYPE"
    explicit = stored(project="mine", group="ours", tags=["paper"])
    assert (explicit.project, explicit.group, explicit.tags) == ("mine", "ours", ["paper"])
    assert explicit.name == "my-NAME"


@pytest.mark.slow
def test_two_wandb_runs_in_one_process_stay_apart(tmp_path):
    loggers = []
    for index in range(2):
        logger = WandbLogger(mode="offline", group="chosen")
        logger.start(RunInfo(f"run{index}", "sweep", "analyze", {"seed": index}, tmp_path / str(index)))
        loggers.append(logger)
    for index, logger in enumerate(loggers):
        logger.log({"loss": float(index)}, 7)
        logger.finish(succeeded=index == 0)

    first, second = (read_offline_run(tmp_path / str(index) / "wandb") for index in range(2))
    assert (first.config["seed"], second.config["seed"]) == (0, 1)
    assert first.group == second.group == "chosen"
    assert (first.history[7]["loss"], second.history[7]["loss"]) == (0.0, 1.0)
    assert (first.exit_code, second.exit_code) == (0, 1)


def test_wandb_refuses_an_unknown_mode():
    with pytest.raises(UserError, match=r"mode='on' .* auto, online, offline"):
        WandbLogger(mode="on")  # type: ignore[arg-type]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 160 KiB and a function that fills it up."""
    disk = tmp_path / "output"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")

    def fill() -> None:
        with (disk / "filling").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(512))
                except OSError:
                    return

    yield fill
    subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=60)


def test_wandb_on_a_disk_that_is_full_from_the_start(small_disk, run, figure, mask, capfd):
    small_disk()
    group = LoggerGroup([WandbLogger(mode="offline")])
    report_all(group, run, figure, mask)
    assert group.not_logged == ["wandb: everything (No space left on device)"]
    assert capfd.readouterr().err == ""


def test_wandb_on_a_disk_that_fills_up_before_the_figures(small_disk, run, figure, mask, caplog, capfd):
    group = LoggerGroup([WandbLogger(mode="offline")])
    group.start(run)
    small_disk()
    for step in range(300):
        group.log({"loss": 1.0, "sparsity": 0.5}, step)
    group.figures([figure])
    group.masks([mask])
    group.finish(True)

    assert group.not_logged[0] == "wandb: figures, masks (No space left on device)"
    assert "the disk is full" in group.not_logged[1]
    assert len(caplog.records) == 1
    assert capfd.readouterr().err == ""


def test_wandb_on_a_disk_that_fills_up_after_all_was_given(small_disk, run, caplog):
    group = LoggerGroup([WandbLogger(mode="offline")])
    group.start(run)
    small_disk()
    for step in range(300):
        group.log({"loss": 1.0, "sparsity": 0.5}, step)
    assert group.finish(True) is None
    (missing,) = group.not_logged
    assert missing.startswith("wandb: end of the run (the disk is full, so run-")
    assert len(caplog.records) == 1


def test_jsonl_and_tensorboard_on_a_disk_that_is_full_from_the_start(small_disk, run, figure, mask):
    group = LoggerGroup([JsonlLogger(), TensorboardLogger()])
    small_disk()
    report_all(group, run, figure, mask)
    assert group.not_logged == [
        "jsonl: metrics from step 0, end of the run (No space left on device)",
        "tensorboard: everything (No space left on device)",
    ]


# TensorBoard writes in a thread, which dies of the error before the logger hears of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_on_a_disk_that_fills_up(small_disk, run, figure):
    group = LoggerGroup([TensorboardLogger()])
    group.start(run)
    small_disk()
    for step in range(300):
        group.log({"loss": 1.0}, step)
    group.figures([figure])
    group.finish(True)
    # The thread may outlive the error it reported, and its death must not be charged to a later test.
    for thread in threading.enumerate():
        if type(thread).__name__ == "_AsyncWriterThread":
            thread.join(timeout=60)
    (missing,) = group.not_logged
    assert missing.startswith("tensorboard: ")
    assert missing.endswith("(No space left on device)")


START_AND_FINISH = """
import logging, sys
from pathlib import Path
from mechint.loggers import LoggerGroup, RunInfo, WandbLogger

logging.basicConfig(level=logging.INFO)
group = LoggerGroup([WandbLogger(mode=sys.argv[1], init_timeout=1.0)])
group.start(RunInfo("name", None, "analyze", {}, Path(sys.argv[2])))
group.log({"loss": 1.0}, 0)
print("LINE", group.finish(True))
print("NOT LOGGED", group.not_logged)
"""


def start_and_finish(mode: str, directory: Path, **environment: str) -> str:
    """Output of a fresh process with W&B, whose three streams are a terminal on which a prompt would wait."""
    import pty

    outside, inside = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"} | environment
    process = subprocess.Popen(
        [sys.executable, "-c", START_AND_FINISH, mode, str(directory)],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=variables | {"OMP_NUM_THREADS": "1", "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(inside)
    output = b""
    try:
        while chunk := os.read(outside, 4096):
            output += chunk
    except OSError:  # how Linux reports that the other side of the terminal is closed
        pass
    finally:
        os.close(outside)
        process.wait(timeout=120)
    assert process.returncode == 0, output.decode()
    return output.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_wandb_without_a_login_stays_offline_and_does_not_ask(tmp_path):
    lines = start_and_finish("auto", tmp_path / "output").splitlines()
    stored = read_offline_run(tmp_path / "output" / "wandb")
    sync = f"wandb sync {stored.directory}"
    assert lines == [
        f"LINE The W&B run was kept offline (no login); upload it with: {sync}",
        "NOT LOGGED []",
    ]
    assert stored.history[0]["loss"] == 1.0
    assert stored.exit_code == 0


@pytest.mark.slow
def test_wandb_online_without_a_login_says_what_to_do(tmp_path):
    output = start_and_finish("online", tmp_path / "output")
    assert "NOT LOGGED ['wandb: everything (no W&B login" in output
    assert "run `wandb login`, or use mode=offline" in output


@pytest.mark.slow
def test_wandb_without_a_network_stays_offline(tmp_path):
    key = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    output = start_and_finish("auto", tmp_path / "output", **key)
    assert "WARNING:mechint.loggers.wandb_logger:W&B could not be reached" in output
    assert "NOT LOGGED []" in output
    assert read_offline_run(tmp_path / "output" / "wandb").history[0]["loss"] == 1.0


@pytest.mark.slow
def test_disabled_wandb_is_not_passed_over_in_silence(tmp_path):
    output = start_and_finish("auto", tmp_path / "output", WANDB_MODE="disabled")
    assert "LINE W&B is disabled by WANDB_MODE, so nothing was sent there." in output


# ------------------------------------------------------------------------------------------- progress


def test_progress_off_a_terminal_is_about_ten_log_lines(caplog, capfd):
    caplog.set_level(logging.INFO)
    with Progress() as progress:
        progress.start(203, "learning masks")
        for step in range(1, 204):
            progress.update(step, {"loss": torch.tensor(1.25), "sparsity": 0.5, "temperature": None})

    lines = [record.getMessage() for record in caplog.records]
    assert 10 <= len(lines) <= 12
    assert lines[0].startswith("learning masks  step 20/203  loss 1.2500  sparsity 0.5000  00:0")
    assert lines[-1] == "learning masks  step 203/203  loss 1.2500  sparsity 0.5000  00:00 left"
    assert capfd.readouterr().err == ""


def test_progress_with_few_steps_has_a_line_each(caplog):
    caplog.set_level(logging.INFO)
    with Progress(bar=False) as progress:
        progress.start(3)
        for step in (1, 2, 3):
            progress.update(step, {"loss": 1.0})
    assert [record.getMessage().split("  ")[0] for record in caplog.records] == [
        "step 1/3",
        "step 2/3",
        "step 3/3",
    ]


def test_progress_bar_shows_the_numbers_and_goes_away(capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(sys.stderr)])
    monkeypatch.setattr(root, "level", logging.INFO)
    with Progress(bar=True) as progress:
        progress.start(4, "learning masks")
        progress._tqdm.mininterval = 0  # type: ignore[union-attr]
        progress.update(3, {"loss": 1.25, "sparsity": 0.5})
        root.info("half-way")  # above the bar
    error = capsys.readouterr().err
    assert "learning masks  75%" in error
    assert "| 3/4, 00:00 left, loss=1.2500, sparsity=0.5000" in error
    assert "\nhalf-way\n" in error.replace("\r", "\n")
    assert error.endswith("\r")  # the bar's own line is empty again
    assert len(root.handlers) == 1
    assert type(root.handlers[0]) is logging.StreamHandler


# -------------------------------------------------------------------------------------- configuration


def test_logger_options_compose_as_a_list(tmp_path):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    (tmp_path / "config.yaml").write_text("defaults: [{logger: jsonl}, _self_]\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = compose(
            "config",
            [
                f"hydra.searchpath=[file://{ROOT / 'conf'}]",
                "logger=[none,wandb,tensorboard,jsonl]",
                "logger.project=foo",
                "logger.group=bar",
            ],
        )
    node = OmegaConf.to_container(config.logger, resolve=True)
    assert isinstance(node, dict)
    assert (node["project"], node["group"]) == ("foo", "bar")
    assert list(node["sinks"]) == ["wandb", "tensorboard", "jsonl"]
    wandb = node["sinks"]["wandb"]
    assert wandb.pop("_target_") == "mechint.loggers.WandbLogger"
    logger = WandbLogger(**wandb)
    assert (logger.project, logger.group, logger.mode) == ("foo", "bar", "auto")
