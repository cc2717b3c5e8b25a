"""A run on two processes is the run of one, whether each holds the model or both hold it together."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from architectures import tiny_model
from conftest import ROOT
from hydra_application import Experiment, experiment
from warm_programs import ended, start

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


@pytest.fixture
def analyze(tmp_path: Path) -> Iterator[Experiment]:
    """Runs experiments/analyze.py in the test's own process."""
    with experiment(tmp_path) as run:
        yield run


def by_torchrun(_: Path, *arguments: str) -> None:
    """Run experiments/analyze.py in two processes, as a user would."""
    command = [sys.executable, *TORCHRUN, "experiments/analyze.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def by_hand(directory: Path, *arguments: str) -> None:
    """The same in processes that need not import torch first, and know of each other what torchrun would tell them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    places = [directory / str(rank) for rank in range(2)]
    for place in places:
        place.mkdir(parents=True)
    processes = [
        start(place, *arguments, **told, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, place in enumerate(places)
    ]
    for process, place in zip(processes, places, strict=True):
        assert ended(process) == 0, (place / "output.txt").read_text()


def result(output: Path) -> tuple[dict, list[dict]]:  # type: ignore[type-arg]
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return json.loads((output / "result.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_learn_the_mask_of_one(
    tmp_path: Path, byte_model_directory: Path, analyze: Experiment
) -> None:
    settings = [f"checkpoint={byte_model_directory}", *COMMON, *SMALL]
    ended = analyze(*settings, f"output_dir={tmp_path / 'one'}", small=False)
    assert ended.code == 0, ended.err
    alone, history = result(tmp_path / "one")
    for name, run, more in (("copies", by_torchrun, []), ("halves", by_hand, ["model.shard=true"])):
        run(tmp_path / "processes", *settings, *more, f"output_dir={tmp_path / name}")
        both, history_of_both = result(tmp_path / name)
        for variant in ("dense", "empty", "masked", "complement"):
            assert both["metrics"][variant] == pytest.approx(alone["metrics"][variant], rel=1e-6, abs=1e-6)
        losses = [line["loss"] for line in history_of_both]
        assert losses == pytest.approx([line["loss"] for line in history], rel=1e-6, abs=1e-6)
        assert [layer["k_kept"] for layer in both["layers"]] == [layer["k_kept"] for layer in alone["layers"]]
        for value in ("before", "after"):
            assert both["finishing"][value] == pytest.approx(alone["finishing"][value], rel=1e-5)
        assert both["finishing"]["exchanged_units"] == alone["finishing"]["exchanged_units"]
        assert both["cost"]["tokens"] >= alone["cost"]["tokens"]
        assert (tmp_path / name / "final_masks.pt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copies", "halves", "one", "processes"]


@pytest.mark.parametrize(
    ("settings", "message"), [(["seeds=2"], "give every device one"), (["-m"], "single run")]
)
def test_what_several_processes_cannot_do_is_one_line(
    settings: list[str], message: str, monkeypatch: pytest.MonkeyPatch, analyze: Experiment
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    ended = analyze("checkpoint=bundled:llama", "output_dir=out", *COMMON, *SMALL, *settings, small=False)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1


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
