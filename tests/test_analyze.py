"""One run, from the command line to every file it leaves."""

import json
import math
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from hydra_application import Experiment, experiment

from mechint.results import load_masks
from mechint.results.result import SCHEMA_VERSION

SMALL = [
    "steps=4",
    "target_sparsity=0.5",
    "dataset.sequence_length=32",
    "dataset.calibration_tokens=1024",
    "dataset.evaluation_tokens=512",
    "trainer.batch_size=4",
    "trainer.log_every=1",
    "controls.random_masks=2",
]


def analyze(directory: Path, *overrides: str, terminal: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the job as a user would, from another directory and in a process of its own, which takes seconds to start."""
    command = [sys.executable, str(ROOT / "experiments" / "analyze.py"), *overrides]
    if not terminal:
        return subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=False, timeout=300
        )
    master, slave = pty.openpty()
    process = subprocess.Popen(command, cwd=directory, stderr=slave, stdout=subprocess.PIPE, text=True)
    os.close(slave)
    seen = b""
    while True:
        try:
            block = os.read(master, 4096)
        except OSError:  # the terminal is gone
            break
        if not block:
            break
        seen += block
    out, _ = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, seen.decode())


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Experiment]:
    """The same below tmp_path, and in the test's own process."""
    with experiment(tmp_path) as run:
        yield run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path) -> Path:
    """The output directory of one finished small run."""
    with experiment(tmp_path_factory.mktemp("run")) as program:
        done = program(
            f"checkpoint={byte_model_directory}", "output_dir=out", *SMALL, "visualizer.dpi=40", small=False
        )
    assert done.code == 0, done.err
    assert "kept 48 of 96 units" in done.out
    assert "step 4/4" in done.out  # plain lines, as there is no terminal
    return program.directory / "out"


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    """Its result.json."""
    return json.loads((run / "result.json").read_text())


def test_every_file_is_there(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    figures = {f"model.layers.{i}.self_attn_importance.png" for i in range(3)}
    assert names >= figures | {
        "kv_channel_importance.png",
        "sparsity_curves.png",
        "circuit_analysis_report.md",
        "final_masks.pt",
        "final_masks.safetensors",
        "metrics.jsonl",
        "result.json",
        ".hydra",
    }
    assert not [name for name in names if name.startswith(".") and name != ".hydra"]
    assert all((run / name).stat().st_size > 0 for name in names)


def test_result_says_everything(result: dict[str, Any], byte_model_directory: Path) -> None:
    assert result["status"] == "done"
    assert result["error"] is None
    assert result["schema_version"] == SCHEMA_VERSION
    assert result["config"]["mask"]["unit"] == "channel"
    assert result["checkpoint"]["source"] == str(byte_model_directory)
    assert result["checkpoint"]["format"] == "huggingface"
    assert result["checkpoint"]["architecture"] == "llama"
    assert [result["checkpoint"][key] for key in ("num_layers", "num_kv_heads", "head_dim")] == [3, 2, 8]
    assert result["dataset"]["calibration_tokens"] == 1024
    assert result["dataset"]["evaluation_tokens"] == 512
    sparsity = result["sparsity"]
    assert (sparsity["target"], sparsity["achieved"], sparsity["kept"], sparsity["total"]) == (
        0.5,
        0.5,
        48,
        96,
    )
    assert sparsity["k"]["kept"] + sparsity["v"]["kept"] == 48
    assert sum(layer["k_kept"] + layer["v_kept"] for layer in result["layers"]) == 48
    assert [layer["index"] for layer in result["layers"]] == [0, 1, 2]
    assert set(result["metrics"]) == {"dense", "empty", "masked", "complement"}
    for metrics in result["metrics"].values():
        assert set(metrics) == {
            *("loss", "perplexity", "bits_per_byte", "kl", "top1_agreement"),
            *("loss_se", "kl_se", "top1_agreement_se", "perplexity_se", "bits_per_byte_se"),
        }
        assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / math.log(2))  # bytes are tokens
    dense, empty, masked = (result["metrics"][name]["loss"] for name in ("dense", "empty", "masked"))
    assert result["loss_degradation_percent"] == pytest.approx(100 * (masked - dense) / dense)
    assert result["faithfulness"] == pytest.approx((empty - masked) / (empty - dense))
    assert result["cost"]["steps"] == 4
    assert result["finishing"]["after"] <= result["finishing"]["before"]
    assert result["cost"]["tokens"] > 4 * 4 * 32  # the finishing pass takes some too


def test_masks_history_and_report_agree_with_the_result(run: Path, result: dict[str, Any]) -> None:
    masks = load_masks(run / "final_masks.safetensors")
    pickled = load_masks(run / "final_masks.pt")
    assert list(masks) == [layer["name"] for layer in result["layers"]]
    for name, mask in masks.items():
        assert torch.equal(mask.k_mask, pickled[name].k_mask)
        layer = next(layer for layer in result["layers"] if layer["name"] == name)
        assert (int(mask.k_mask.sum()), int(mask.v_mask.sum())) == (layer["k_kept"], layer["v_kept"])
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in history] == [0, 1, 2, 3]
    assert history[0]["sparsity"] == 0
    assert history[-1]["sparsity"] == 0.5
    assert "48 of 96" in (run / "circuit_analysis_report.md").read_text()


@pytest.mark.slow
def test_the_same_seed_gives_identical_masks_in_another_process_and_another_seed_does_not(
    run: Path, result: dict[str, Any], byte_model_directory: Path, tmp_path: Path, program: Experiment
) -> None:
    common = [f"checkpoint={byte_model_directory}", "visualizer=none", *SMALL]
    process = analyze(tmp_path, "output_dir=0", "seed=0", *common)
    assert process.returncode == 0, process.stderr
    done = program("output_dir=1", "seed=1", *common, small=False)
    assert done.code == 0, done.err
    first, same, other = (
        load_masks(path / "final_masks.pt") for path in (run, tmp_path / "0", tmp_path / "1")
    )
    assert all(torch.equal(first[name].k_importance, same[name].k_importance) for name in first)
    assert all(torch.equal(first[name].v_mask, same[name].v_mask) for name in first)
    assert any(not torch.equal(first[name].v_mask, other[name].v_mask) for name in first)
    repeated = json.loads((tmp_path / "0" / "result.json").read_text())
    assert repeated["metrics"] == result["metrics"]
    assert repeated["config_digest"] == result["config_digest"]
    assert (
        json.loads((tmp_path / "1" / "result.json").read_text())["dataset"]["evaluation_digest"]
        == (result["dataset"]["evaluation_digest"])
    )


@pytest.mark.slow
def test_other_choices_work_together_and_a_terminal_shows_a_bar(
    byte_model_directory: Path, tmp_path: Path
) -> None:
    done = analyze(
        tmp_path,
        f"checkpoint={byte_model_directory}",
        *SMALL,
        "mask=annealed_sigmoid",
        "mask.unit=rope_pair",
        "mask.scope=per_head",
        "ablation=mean",
        "objective=nll",
        "sparsity_schedule=cosine",
        "visualizer=none",
        "logger=none",
        terminal=True,
    )
    assert done.returncode == 0, done.stderr
    assert "%|" in done.stderr
    directories = list((tmp_path / "outputs" / "runs").glob("python_docs_tiny_bytes/*"))
    assert len(directories) == 1
    record = json.loads((directories[0] / "result.json").read_text())
    assert record["sparsity"]["total"] == 3 * 2 * (4 + 8)
    assert record["sparsity"]["kept"] == 36
    assert record["channels"]["total"] == 96
    assert record["mask"] == {
        "method": "AnnealedSigmoid",
        "unit": "rope_pair",
        "scope": "per_head",
        "ablation": "mean",
        "tie_kv": False,
        "objective": "nll",
        "surrogate_of": None,
        "schedule": "CosineSchedule",
        "importance": "learned logit of the gate",
    }
    gap = record["binarization_gap"]
    assert gap["gap"] == pytest.approx(record["metrics"]["masked"]["kl"] - gap["soft_kl"])
    assert 0 <= gap["soft_open"] <= 72
    notes = " ".join(record["notes"])
    assert "sparsity_schedule has no effect" in notes
    assert "optimizer.lr" in notes
    assert "Binarization gap" in (directories[0] / "circuit_analysis_report.md").read_text()
    assert not list(directories[0].glob("*.png"))
    assert (directories[0] / "metrics.jsonl").exists()


@pytest.mark.slow
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """As a shell sees it; every other kind of it is in test_bad_input.py."""
    done = analyze(tmp_path, "checkpoint=nowhere.pt", "output_dir=out")
    assert done.returncode == 2
    assert "nowhere.pt" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_settings_without_effect_are_said(tmp_path: Path, program: Experiment) -> None:
    done = program(
        *SMALL, "mask=act_norm", "mask.unit=rope_pair", "output_dir=out", "visualizer=none", small=False
    )
    assert done.code == 0, done.err
    notes = " ".join(json.loads((tmp_path / "out" / "result.json").read_text())["notes"])
    assert "mask.unit=rope_pair has no effect" in notes  # the bundled baseline has no RoPE
    assert "optimizer" in notes
    assert "only scores" in (tmp_path / "out" / "circuit_analysis_report.md").read_text()
