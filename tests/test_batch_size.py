"""How much memory there is, and the batch that it holds."""

import logging
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from architectures import tiny_model
from tiny_training import ROWS, SmallMemory, learn

from mechint import analyze
from mechint.data import PythonDocs
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.learning import MaskTrainer, fit
from mechint.learning.fit import largest_batch
from mechint.learning.trainer import Training
from mechint.masking import MaskedModel
from mechint.methods import TopK
from mechint.metrics import KL
from mechint.reporting import Visualizer
from mechint.runtime import memory
from mechint.runtime.memory import free_bytes, held_bytes, peak_bytes

CPU = torch.device("cpu")
BATCH = Batch.of_rows(ROWS)
HIDDEN_BYTES = 16 * tiny_model("llama").config.hidden_size * 4  # of the 16 positions of a row
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_memory_is_seen() -> None:
    free, held = free_bytes(CPU), held_bytes(CPU)
    assert free is not None
    assert held is not None
    assert held > 2**20
    assert free > 2**20
    peak = peak_bytes(lambda: torch.ones(2**24), CPU)  # 64 MiB
    assert peak is not None
    assert 0.9 * 2**26 < peak - held < 1.5 * 2**26


def test_limits_of_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both versions of control groups; the narrowest limit around the process is what counts."""
    groups, proc = tmp_path / "cgroup", tmp_path / "proc"
    for path, limit, used in (("job", "max", 7), ("job/step", "5000", 1000), ("job/step/task", "9000", 900)):
        (groups / path).mkdir(parents=True, exist_ok=True)
        (groups / path / "memory.max").write_text(f"{limit}\n")
        (groups / path / "memory.current").write_text(f"{used}\n")
    (groups / "memory" / "old").mkdir(parents=True)
    (groups / "memory" / "old" / "memory.limit_in_bytes").write_text("3000\n")
    (groups / "memory" / "old" / "memory.usage_in_bytes").write_text("4000\n")
    (proc / "self").mkdir(parents=True)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=102_400))
    monkeypatch.setattr(memory, "CGROUPS", groups)
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(sys, "platform", "linux")
    for text, expected in (
        ("3:cpu:/x\n", 102_400),
        ("0::/nowhere\n", 102_400),
        ("0::/job\n", 102_400),
        ("0::/job/step/task\n", 4000),
        ("4:cpu,memory:/old\n0::/job/step\n", 0),
    ):
        (proc / "self" / "cgroup").write_text(text)
        assert free_bytes(CPU) == expected


def pretend(monkeypatch: pytest.MonkeyPatch, free: float | None) -> list[int]:
    """Pretend so many free bytes, and steps that take 100 for every sequence; the sizes that are tried."""
    tried: list[int] = []

    def peak(work: partial[None], device: torch.device) -> int:
        work()
        tried.append(len(work.args[1]))
        return 50 + 100 * tried[-1]

    monkeypatch.setattr(fit, "free_bytes", lambda device: free)
    monkeypatch.setattr(fit, "held_bytes", lambda device: 50)
    monkeypatch.setattr(fit, "peak_bytes", peak)
    return tried


@pytest.mark.parametrize(
    ("free", "dense_bytes", "expected"),
    [(1000, 0, 8), ((500 + 12 * HIDDEN_BYTES) / 0.9, 2**20, 4), (10**6, 2**20, 8), (150, 0, 1)],
)
def test_the_batch_doubles_as_long_as_memory_and_rows_allow(
    free: float, dense_bytes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = pretend(monkeypatch, free)
    assert largest_batch(MaskedModel(tiny_model("llama")), BATCH, KL, dense_bytes) == expected
    assert tried == [size for size in (1, 2, 4, 8) if size <= expected]


def test_a_device_that_is_full_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 10**6)
    small = SmallMemory(tiny_model("llama"))
    small.capacity = 5
    assert largest_batch(small, BATCH, KL, 0) == 4
    small.capacity = 0
    with pytest.raises(UserError, match="out of memory with a single sequence"):
        largest_batch(small, BATCH, KL, 0)
    pretend(monkeypatch, None)
    with pytest.raises(UserError, match=r"batch_size=auto cannot tell .*; give a number"):
        largest_batch(small, BATCH, KL, 0)


def train(directory: Path, stop_after: int | None = None) -> Training:
    """Nine steps of as many sequences as fit."""
    trainer = MaskTrainer(batch_size="auto", save_every=2, log_every=1)
    masked = MaskedModel(tiny_model("llama"))
    return learn(masked, TopK(), trainer, directory=directory, stop_after=stop_after, steps=9)


@pytest.mark.slow
def test_a_run_goes_on_with_the_batch_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, (500 + 11 * HIDDEN_BYTES) / 0.9)
    whole = train(tmp_path / "whole")
    assert whole.batch_size == 4
    train(tmp_path / "broken", stop_after=4)
    pretend(monkeypatch, 10**6)  # a larger machine
    resumed = train(tmp_path / "broken")
    assert resumed.batch_size == 4
    assert resumed.tokens == whole.tokens
    torch.testing.assert_close(resumed.scores, whole.scores)
    assert train(tmp_path / "large").batch_size == 8


@linux
@pytest.mark.slow
def test_a_run_finds_its_batch_and_says_so(
    byte_model_directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = PythonDocs(sequence_length=32, calibration_tokens=1024, evaluation_tokens=512)
    with caplog.at_level(logging.INFO):
        run = analyze(
            str(byte_model_directory),
            tmp_path,
            steps=2,
            dataset=data,
            trainer=MaskTrainer(batch_size="auto"),
            visualizer=Visualizer([]),
        )
    assert "trainer.batch_size=auto: 16 sequences" in caplog.text  # of 31 rows: one is for selection
    assert run.result.cost.batch_size == 16
