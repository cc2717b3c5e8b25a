"""NaN, too little memory, and a disk that is full: what a run says, and what is left of it."""

import json
import logging
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_model
from tiny_training import ROWS, SmallMemory, learn
from torch import Tensor

from mechint import analyze
from mechint.data import PythonDocs
from mechint.data.batch import Batch
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.learning.finite import first_not_finite, require_finite_scores
from mechint.learning.fit import Fit, is_out_of_memory
from mechint.learning.resume import SavedStates
from mechint.loggers import Logger, RunInfo
from mechint.masking import MaskedModel
from mechint.methods import ActivationNorm, NormalizedSGD, TopK
from mechint.methods.method import MaskMethod
from mechint.metrics.evaluation import Evaluator, measure
from mechint.metrics.metric import KlDivergence
from mechint.reporting import ImportanceOverview, Visualizer
from mechint.results import RunFiles


class NanAfter(KlDivergence):
    """An objective whose loss, or only its gradient, becomes NaN after so many steps."""

    def __init__(self, steps: int, gradient_only: bool) -> None:
        self.steps, self.gradient_only = steps, gradient_only

    def mean(self, *arguments: Any) -> Tensor:
        self.steps -= 1
        loss = super().mean(*arguments)
        if self.steps >= 0:
            return loss
        if not self.gradient_only:
            return loss * torch.nan
        loss.register_hook(lambda slope: slope * torch.nan)
        return loss


@pytest.mark.parametrize(
    ("gradient_only", "message"),
    [(False, "step 5: the loss is nan"), (True, "step 5: the gradients are not finite")],
)
def test_a_step_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
    gradient_only: bool, message: str, tmp_path: Path
) -> None:
    masked = MaskedModel(tiny_model("llama"))
    with pytest.raises(UserError, match=f"{message}.*check the checkpoint, or lower optimizer.lr"):
        learn(masked, TopK(), objective=NanAfter(5, gradient_only), directory=tmp_path)
    state = SavedStates(tmp_path, "digest").newest()
    assert state is not None
    assert state["step"] == 4
    learned = state["learner"]["method"]
    assert learned
    assert all(value.isfinite().all() for value in learned.values())


def test_in_bf16_the_remedy_is_named() -> None:
    with pytest.raises(UserError, match="bfloat16 is too coarse or overflows here: set dtype=float32"):
        learn(MaskedModel(tiny_model("llama").bfloat16()), TopK(), objective=NanAfter(0, False))


def test_the_layer_is_named_where_the_dense_model_overflows() -> None:
    masked = MaskedModel(tiny_model("llama"))
    with torch.no_grad():
        masked.model.model.layers[1].mlp.down_proj.weight.mul_(1e38).mul_(1e3)
    assert first_not_finite(masked.model, ROWS[:1, :-1]) == "model.layers.1.mlp.down_proj"
    with pytest.raises(UserError, match=r"outputs are not finite, first in model.layers.1.mlp.down_proj"):
        learn(masked, TopK())
    with pytest.raises(UserError, match="the dense model's outputs on the evaluation data are not finite"):
        measure(Evaluator(masked, Batch.of_rows(ROWS), at_once=4), {"dense": None}, None)
    with pytest.raises(UserError, match="2 of 3 scores of Fisher are not finite"):
        require_finite_scores(torch.tensor([1.0, torch.nan, torch.inf]), "Fisher")


def test_an_impossible_learning_rate_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"the optimizer cannot be made: invalid lr=-1.0.*; correct optimizer"
    ):
        learn(MaskedModel(tiny_model("llama")), TopK(), make_optimizer=partial(NormalizedSGD, lr=-1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [partial(TopK, finishing_trials=2), ActivationNorm], ids=["TopK", "ActivationNorm"]
)
@pytest.mark.parametrize("capacity", [3, 1])
def test_with_too_little_memory_the_result_is_the_same(
    method: Callable[[], MaskMethod], capacity: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = learn(MaskedModel(tiny_model("llama")), method())
    small = SmallMemory(tiny_model("llama"))
    small.capacity = capacity
    with caplog.at_level(logging.WARNING):
        parts = learn(small, method())
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-4, atol=1e-5)
    losses = [[line["loss"] for line in run.history] for run in (parts, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)
    warned = [record.message for record in caplog.records if "out of memory" in record.message]
    assert len(warned) <= 1  # a scorer may need the logits of single sequences only
    if method is not ActivationNorm:
        assert "2 sequences at a time" in warned[0]


def test_one_sequence_that_does_not_fit_names_what_helps() -> None:
    small = SmallMemory(tiny_model("llama"))
    small.capacity = 0
    with pytest.raises(
        UserError,
        match=r"single sequence at a time; lower dataset.sequence_length, or set trainer.activation",
    ):
        learn(small, TopK())


def test_other_errors_are_not_taken_for_too_little_memory() -> None:
    tried = []

    def work(size: int) -> None:
        tried.append(size)
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Fit(8)(work)
    assert tried == [8]
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(MemoryError())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_device_that_is_full() -> None:
    masked = MaskedModel(tiny_model("llama").to("cuda"))
    whole = learn(masked, TopK())
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**30, device="cuda")
        parts = learn(masked, TopK())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-3, atol=1e-4)


class Filler(Logger):
    """Fills the disk of a run, but for so many bytes, once it learns."""

    name = "filler"

    def __init__(self, left: int) -> None:
        self.left, self._path = left, Path()

    def start(self, run: RunInfo) -> None:
        self._path = run.output_dir.parent / "filling"

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        if self._path.exists():
            return
        with self._path.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                file.truncate(max(0, file.tell() - self.left))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=60)


@pytest.fixture
def run(byte_model_directory: Path) -> Callable[..., RunFiles]:
    """A small analysis with one figure."""
    return partial(
        analyze,
        str(byte_model_directory),
        steps=6,
        dataset=PythonDocs(sequence_length=32, calibration_tokens=2048, evaluation_tokens=1024),
        trainer=MaskTrainer(log_every=1, save_every=1),
        visualizer=Visualizer([ImportanceOverview()]),
    )


@pytest.mark.slow
def test_a_disk_without_room_for_figures_still_gets_the_numbers(
    run: Callable[..., RunFiles], small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = run(small_disk / "out", loggers=[Filler(left=150_000)])  # two saved states take half of it
    assert files.result.status == "done"
    assert files.result.notes[-1] == "figures are missing: No space left on device"
    assert "not all figures could be written (No space left on device)" in caplog.text
    assert not list((small_disk / "out").glob("*.png"))
    assert not list((small_disk / "out").glob(".*"))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_run_goes_on_later(
    run: Callable[..., RunFiles], small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\); free some space, and the same"
    ):
        run(small_disk / "out", loggers=[Filler(left=0)])
    assert caplog.text.count("the run continues, but its state cannot be saved: No space left on device") == 1
    with pytest.raises(
        UserError, match=r"cannot write into .* \(No space left on device\); give another output_dir"
    ):
        run(small_disk / "out", loggers=[Filler(left=0)])  # before the long work
    (small_disk / "filling").unlink()
    assert run(small_disk / "out").result.status == "done"


def test_a_disk_that_is_read_only_is_one_line(run: Callable[..., RunFiles], small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=60)
    with pytest.raises(
        UserError, match=r"cannot write into .* \(Read-only file system\); give another output_dir"
    ):
        run(small_disk / "out")


@pytest.mark.slow
def test_a_directory_that_vanishes_comes_back(run: Callable[..., RunFiles], tmp_path: Path) -> None:
    class Remover(Logger):
        name = "remover"

        def log(self, metrics: Mapping[str, Any], step: int) -> None:
            if step == 2:
                (tmp_path / "out").rename(tmp_path / "gone")

    run(tmp_path / "out", loggers=[Remover()])
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "done"
