"""A run on two processes is the run of one, whether each holds the model or both hold it together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import tiny_model
from conftest import ROOT

from mechint.checkpoints import CheckpointLoader
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.learning.recipe import Recipe
from mechint.masking import MaskedModel
from mechint.methods import TopK
from mechint.runtime import distributed

COMMON = [
    "steps=4",
    "trainer.batch_size=4",
    "mask.finishing_trials=3",
    "trainer.log_every=1",
    "visualizer=none",
]
SMALL = [
    "dataset.sequence_length=32",
    "dataset.calibration_tokens=768",
    "dataset.evaluation_tokens=672",  # 21 rows, so that the last batch is uneven
    "target_sparsity=0.5",
    "sparsity_schedule=constant",
]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]


def analyze(output: Path, checkpoint: str, *settings: str, several: bool) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        *(TORCHRUN if several else []),
        "experiments/analyze.py",
        f"checkpoint={checkpoint}",
    ]
    return subprocess.run(
        [*command, f"output_dir={output}", *COMMON, *SMALL, *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )


def result(output: Path, checkpoint: str, *settings: str, several: bool) -> tuple[dict, list[dict]]:  # type: ignore[type-arg]
    done = analyze(output, checkpoint, *settings, several=several)
    assert done.returncode == 0, done.stderr
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return json.loads((output / "result.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_learn_the_mask_of_one(tmp_path: Path, byte_model_directory: Path) -> None:
    checkpoint = str(byte_model_directory)
    alone, history = result(tmp_path / "one", checkpoint, several=False)
    for name, settings in (("copies", []), ("halves", ["model.shard=true"])):
        both, history_of_both = result(tmp_path / name, checkpoint, *settings, several=True)
        for variant in ("dense", "empty", "masked", "complement"):
            assert both["metrics"][variant] == pytest.approx(alone["metrics"][variant], rel=1e-6, abs=1e-6)
        losses = [line["loss"] for line in history_of_both]
        assert losses == pytest.approx([line["loss"] for line in history], rel=1e-6, abs=1e-6)
        assert [layer["k_kept"] for layer in both["layers"]] == [layer["k_kept"] for layer in alone["layers"]]
        assert both["finishing"] == pytest.approx(alone["finishing"], rel=1e-5)
        assert both["cost"]["tokens"] >= alone["cost"]["tokens"]
        assert (tmp_path / name / "final_masks.pt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copies", "halves", "one"]


@pytest.mark.parametrize(
    ("settings", "message"), [(["seeds=2"], "give every device one"), (["-m"], "single run")]
)
def test_what_several_processes_cannot_do_is_one_line(
    settings: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    done = analyze(tmp_path / "run", "bundled:llama", *settings, several=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_batches_that_cannot_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    masked, method = MaskedModel(tiny_model("llama")), TopK(finishing_trials=0)
    method.prepare(masked, 0.5, torch.Generator())
    with pytest.raises(UserError, match="multiple of the 3 processes"):
        MaskTrainer(batch_size=8).train(
            masked,
            Batch.of_rows(torch.zeros(8, 9, dtype=torch.long)),
            Recipe(method=method, steps=1),
            torch.Generator(),
        )


def test_only_several_processes_can_hold_a_model_together() -> None:
    with pytest.raises(UserError, match="torchrun"):
        CheckpointLoader(shard=True).load("bundled:llama", torch.device("cpu"), "auto")


def test_every_row_has_one_process_that_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    counted, calls = torch.zeros(11), []
    for number in range(3):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        shares = list(distributed.shares(11, 4))
        calls.append([len(chosen) for chosen, _ in shares])
        for chosen, weight in shares:
            counted[chosen] += weight
    assert torch.equal(counted, torch.ones(11))
    assert calls[0] == calls[1] == calls[2] == [2, 2, 1]
