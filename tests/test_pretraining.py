"""Training a small model from scratch: the recipe's schedule, what is recorded, and what is left."""

import json
import stat
from pathlib import Path

import pytest
import torch
from hydra_application import experiment

from mechint.errors import UserError
from mechint.pretraining import Pretrainer

RECIPE = {
    "batch_size": 2,
    "learning_rate": 0.004,
    "embedding_learning_rate": 0.003,
    "weight_decay": 0.1,
    "warmup": 100,
    "decay": 0.7,
}
TINY = [
    *(
        "steps=4",
        "positions=16",
        "pretrainer.batch_size=2",
        "dataset.calibration_tokens=4096",
        "dataset.evaluation_tokens=1024",
    ),
    *("architecture.num_layers=1", "architecture.num_heads=2", "architecture.width=16"),
]


@pytest.mark.parametrize(("steps", "full"), [(5, 1), (100, 10), (1500, 100)])
def test_the_learning_rate_rises_over_at_most_a_tenth_of_the_steps(steps: int, full: int) -> None:
    rates = [Pretrainer(**RECIPE)._rate(step, steps) for step in range(steps)]
    assert rates.index(1.0) == full - 1
    assert rates[-1] < 0.35


def test_settings_without_meaning_are_refused() -> None:
    for name, value in (("warmup", 0), ("log_every", "often"), ("batch_size", 0)):
        with pytest.raises(UserError, match=rf"pretrainer.{name}={value} must be"):
            Pretrainer(**{**RECIPE, name: value})


def test_a_pretrained_model_and_its_record(tmp_path: Path) -> None:
    with experiment(tmp_path, "pretrain.py") as pretrain:
        ended = pretrain(*TINY, "output_dir=model", small=False)
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["training_tokens"] == 4 * 2 * 16  # and not all of the text
    assert record["text_tokens"] > record["training_tokens"]
    assert f"{4 * 2 * 16} tokens" in ended.out
    log = (tmp_path / "model" / "pretrain.log").read_text()
    for text in (ended.out, ended.err, log):
        assert "%|" not in text  # no progress bar of other libraries
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").glob("*.json")}
    modes["weights"] = stat.S_IMODE((tmp_path / "model" / "model.safetensors").stat().st_mode)
    assert len(set(modes.values())) == 1, modes  # what the user's umask allows
    assert torch.isfinite(torch.tensor(record["held_out"]["loss"]))
