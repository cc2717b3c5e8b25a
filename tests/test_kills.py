"""A run that is killed at any moment and started again ends as if nothing had happened."""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from warm_programs import ended, start, wait_for

from mechint.results import load_masks

pytestmark = pytest.mark.slow  # the processes take seconds each

SETTINGS = [
    "output_dir=out",
    "steps=50",
    "mask.finishing_trials=10",
    "controls.random_masks=2",
    "visualizer.figures=[{_target_: mechint.reporting.SparsityCurves}]",
    "visualizer.dpi=20",
    "target_sparsity=0.5",
    "dataset.sequence_length=32",
    "dataset.calibration_tokens=2048",
    "dataset.evaluation_tokens=1024",
    "trainer.batch_size=4",
    "trainer.log_every=1",
    "trainer.save_every=5",
]


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody killed. seconds: from its first record to its last."""

    arguments: list[str]
    directory: Path
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path) -> Undisturbed:
    """The run whose end the others must reach."""
    arguments = [f"checkpoint={byte_model_directory}", *SETTINGS]
    directory = tmp_path_factory.mktemp("undisturbed")
    process = start(directory, *arguments)
    wait_for(directory / "out" / "result.json", process)
    began = time.monotonic()
    while process.is_alive() and result(directory / "out")["status"] == "running":
        time.sleep(0.01)
    seconds = time.monotonic() - began
    assert ended(process) == 0, (directory / "output.txt").read_text()
    return Undisturbed(arguments, directory / "out", seconds)


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def differences(first: Path, second: Path) -> list[str]:
    """In what the masks, the numbers and the logged lines of two runs differ by a single bit; files left over."""
    here, there = (load_masks(path / "final_masks.safetensors") for path in (first, second))
    parts = ("k_mask", "v_mask", "k_importance", "v_importance")
    found = [
        f"{name}.{part}"
        for name, mask in here.items()
        for part in parts
        if not torch.equal(getattr(mask, part), getattr(there[name], part))
    ]
    one, other = result(first), result(second)
    for record in (one, other):
        record["finishing"].pop("seconds")  # as long as it took
    found += [key for key in ("metrics", "sparsity", "layers", "finishing") if one[key] != other[key]]
    found += [] if one["cost"]["tokens"] == other["cost"]["tokens"] else ["cost.tokens"]
    metrics = [(path / "metrics.jsonl").read_text() for path in (first, second)]
    found += [] if metrics[0] == metrics[1] else ["metrics.jsonl"]
    names = [{path.name for path in directory.iterdir()} for directory in (first, second)]
    return found + sorted(names[0] ^ names[1])


# A moment of every part of a run, 0 to 1 of its length.
PARTS = 12
MOMENTS = [(part + random.Random(part).random()) / PARTS for part in range(PARTS)]


@pytest.mark.parametrize("moment", MOMENTS, ids="{:.3f}".format)
def test_a_run_killed_at_any_moment_goes_on(undisturbed: Undisturbed, tmp_path: Path, moment: float) -> None:
    """-s shows what it was doing then, and where it went on."""
    process = start(tmp_path, *undisturbed.arguments)
    wait_for(tmp_path / "out" / "result.json", process)
    time.sleep(moment * undisturbed.seconds)
    process.kill()
    ended(process)
    was = result(tmp_path / "out")["status"]
    saved = sorted(path.name for path in (tmp_path / "out" / ".resume").glob("step_*.pt"))
    assert was in ("running", "done")
    assert len(saved) <= 2
    assert ended(start(tmp_path, *undisturbed.arguments)) == 0, (tmp_path / "output.txt").read_text()
    resumed = result(tmp_path / "out")["resumed"]
    assert resumed == ([int(saved[-1][5:14])] if saved and was == "running" else [])
    print(f"\n{was} at {moment * undisturbed.seconds:.1f} s, went on after step {resumed or 'none'}")
    assert differences(undisturbed.directory, tmp_path / "out") == []
