"""What is done with a finished run from Python."""

from __future__ import annotations

import inspect
import json
import pydoc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiers import rest_slow

import mechint
from mechint import analyze, evaluate, load_run
from mechint.analysis.saved import Run
from mechint.checkpoints import CheckpointLoader
from mechint.data import TextFiles
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.masking import MaskedModel
from mechint.masking.ablation import ZERO, Ablation, MeanAblation
from mechint.masking.masks import flat_keep
from mechint.methods import TopK
from mechint.reporting import Visualizer

PROMPT = "three green bottles hanging on"


def text_file(path: Path, thing: str) -> TextFiles:
    """A small text about green things."""
    words = (f"{n * n} {thing} and {n**3 % 97} others on wall {n**5 % 101}" for n in range(400))
    path.write_text("\n\n".join(words))
    return TextFiles(path=str(path), sequence_length=32, calibration_tokens=512, evaluation_tokens=256)


@pytest.fixture(scope="module", params=rest_slow([ZERO, MeanAblation()], [ZERO]), ids=["zero", "mean"])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, byte_model_directory: Path
) -> Run:
    """A run of the tiny model, for each ablation."""
    directory = tmp_path_factory.mktemp("python")
    ablation: Ablation = request.param
    return analyze(
        str(byte_model_directory),
        directory / "run",
        target_sparsity=0.5,
        steps=4,
        device="cpu",
        dataset=text_file(directory / "text.txt", "bottles"),
        method=TopK(finishing_trials=2),
        ablation=ablation,
        trainer=MaskTrainer(batch_size=4),
        visualizer=Visualizer([]),
    )


def test_a_run_is_read_again(run: Run) -> None:
    again = load_run(run.directory)
    assert again.result == run.result
    assert repr(again) == repr(run)
    assert "kept=" in repr(run)
    assert len(repr(run)) < 200 + len(str(run.directory))
    assert (run.directory / "channels.csv").read_text().count("\n") == 1 + run.result.channels.total


def test_the_masked_model_is_the_checkpoint_under_the_mask(run: Run) -> None:
    checkpoint = CheckpointLoader().load(run.result.checkpoint.source, torch.device("cpu"), "auto")
    assert checkpoint.tokenizer is not None
    tokens = checkpoint.tokenizer(PROMPT, return_tensors="pt").input_ids
    dense = checkpoint.model(tokens).logits
    with run.masked_model() as masked:
        inside = masked.model(tokens).logits
        loss = masked.loss(PROMPT)
        assert torch.equal(masked.model(tokens).logits, inside), "loss leaves the mask in place"
    expected = torch.nn.functional.cross_entropy(inside[0, :-1], tokens[0, 1:])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.allclose(inside, dense)
    if run.result.mask.ablation == "zero":
        other = MaskedModel(checkpoint.model)
        keep = flat_keep(other.space, run.masks).float()
        assert torch.equal(inside, other.logits(tokens, keep))
    with torch.no_grad():
        assert torch.equal(masked.model(tokens).logits, dense), "outside the block the model is its own again"


def test_text_is_generated_under_the_mask_with_and_without_a_cache(run: Run) -> None:
    with run.masked_model() as masked:
        found = [masked.generate(PROMPT, 8, do_sample=False, use_cache=cache) for cache in (False, True)]
        assert masked.tokenizer is not None
        tokens = masked.tokenizer(PROMPT, return_tensors="pt").input_ids
        for _ in range(8):
            tokens = torch.cat([tokens, masked.model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert found[0] == found[1] == masked.tokenizer.decode(tokens[0, -8:], skip_special_tokens=True)


def test_a_mask_measured_on_its_own_data_gives_the_numbers_of_the_run(run: Run) -> None:
    found = evaluate(run, device="cpu", batch_size=4)
    for own, again in zip(run.result.metrics.values(), found.metrics.values(), strict=True):
        assert again.kl == pytest.approx(own.kl, rel=1e-5)
        assert again.loss == pytest.approx(own.loss, rel=1e-5)
    assert found.faithfulness == pytest.approx(run.result.faithfulness, rel=1e-4)
    assert found.dataset.evaluation_digest == run.result.dataset.evaluation_digest


def test_a_mask_is_measured_on_other_data(run: Run, tmp_path: Path) -> None:
    other = text_file(tmp_path / "other.txt", "elephants")
    found = evaluate(run.directory, other)
    assert found.dataset.evaluation_digest != run.result.dataset.evaluation_digest
    assert found.metrics.masked.kl not in (None, run.result.metrics.masked.kl)
    assert found.metrics.dense.kl == 0


def changed(run: Run, directory: Path, **config: Any) -> Run:
    """A copy of a run with another configuration in its result."""
    shutil.copytree(run.directory, directory)
    content = json.loads((directory / "result.json").read_text())
    content["config"] |= config
    (directory / "result.json").write_text(json.dumps(content))
    return load_run(directory)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"_target_": "os.system", "command": "true"}, "not a class of mechint"),
        ({"_target_": "mechint.runtime.files.write_json"}, "not a CheckpointLoader"),
        ({"_target_": "mechint.nowhere.Loader"}, "does not describe its model"),
        ({"_target_": "mechint.checkpoints.CheckpointLoader", "nonsense": 1}, "nonsense"),
        (None, "does not describe its model"),
    ],
)
def test_a_strangers_configuration_calls_nothing_but_loaders(
    run: Run, tmp_path: Path, model: Any, message: str
) -> None:
    foreign = changed(run, tmp_path / "foreign", model=model)
    with pytest.raises(UserError, match=message), foreign.masked_model():
        pass


def test_another_checkpoint_at_the_same_place_is_refused(
    run: Run, tmp_path: Path, byte_model_directory: Path
) -> None:
    copy = changed(run, tmp_path / "copy")
    copy.result.checkpoint.sha256 = "0" * 64
    with pytest.raises(UserError, match="is not the checkpoint"):
        evaluate(copy)


def test_help_shows_the_functions() -> None:
    assert set(mechint.__all__) <= set(dir(mechint))
    page = pydoc.render_doc(mechint, renderer=pydoc.plaintext)
    for name in mechint.__all__:
        assert f"{name}(" in page
        assert inspect.getdoc(getattr(mechint, name))
