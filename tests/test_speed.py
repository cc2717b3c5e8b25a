"""The speed benchmark runs and reports what it measured; how fast anything is, no test says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hydra_application import experiment

from mechint.benchmark.speed import SpeedBenchmark
from mechint.benchmark.speed.models import SHAPES, make_model, random_llama, step_flops
from mechint.benchmark.speed.steps import Steps
from mechint.errors import UserError


@pytest.mark.slow
def test_the_command_prints_ratios(tmp_path: Path) -> None:
    settings = [
        "what.models=['bundled:llama']",
        "what.batch_size=1",
        "what.sequence_length=16",
        "what.repeats=2",
    ]
    with experiment(tmp_path, "benchmark.py") as benchmark:
        done = benchmark("what=speed", "output_dir=out", *settings, small=False)
    assert done.code == 0, done.err
    assert "| bundled:llama, float32 | kl |" in done.out
    record = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [row["step"] for row in record["rows"]] == ["plain", "nll", "kl"]
    for row in record["rows"]:
        assert row["ratio"]["least"] <= row["ratio"]["median"] <= row["ratio"]["greatest"]
    assert record["rows"][0]["ratio"]["median"] == 1
    assert (tmp_path / "out" / "speed.md").read_text() in done.out


def test_all_steps_give_gates_the_gradient_of_what_they_compute() -> None:
    model = make_model("bundled:llama", torch.device("cpu"), "float32")
    steps = Steps(model, 2, 8)
    for step in steps.all.values():
        step()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_a_step_holds_at_a_time() -> None:
    # in a process of its own: measuring changes how memory is given back
    script = """
import torch
from mechint.benchmark.speed.meters import extra_bytes
def step():
    for _ in range(3):
        torch.ones(2**22)  # 16 MiB, one after the other
print(extra_bytes(step, torch.device("cpu")))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert 0.9 * 2**24 < int(done.stdout) < 1.5 * 2**24


def test_flops_are_those_of_the_matrix_products() -> None:
    shape = {**SHAPES["smollm2_135m"], "num_hidden_layers": 1, "vocab_size": 100}
    tied = random_llama(shape, torch.device("cpu"), torch.float32)
    untied = random_llama({**shape, "tie_word_embeddings": False}, torch.device("cpu"), torch.float32)
    layer = 576 * (576 + 2 * 192 + 576) + 3 * 576 * 1536
    attention = 7 * 10 * 5 * 2 * 576
    assert step_flops(tied, 1, 10) == step_flops(untied, 1, 10) == 4 * 10 * (layer + 57600) + attention


def test_impossible_settings_are_one_line() -> None:
    with pytest.raises(UserError):
        SpeedBenchmark(repeats=0)
    with pytest.raises(UserError):
        SpeedBenchmark(models=[])
