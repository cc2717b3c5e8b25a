"""What `checkpoint=` may name, what its settings do, and the real checkpoints of known quality."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_checkpoints import assert_refused, byte_tokenizer, load, nanogpt_weights, save_llama, save_nanogpt
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mechint.checkpoints import CheckpointLoader, bundled, bundled_names
from mechint.checkpoints.checkpoint import short_name
from mechint.errors import UserError


@pytest.fixture(scope="module")
def shared_data() -> Path:
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real checkpoints of ../shared/data are not here")
    return path


def test_bundled_models_are_listed_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "_ROOT", tmp_path)
    save_llama(tmp_path / "small")
    (tmp_path / "unfinished").mkdir()
    assert bundled_names() == ["small"]
    checkpoint = load("bundled:small")
    assert (checkpoint.source, checkpoint.format, checkpoint.name) == ("bundled:small", "bundled", "small")
    assert_refused("no bundled model 'large'; bundled models: bundled:small", "bundled:large")
    assert_refused("did you mean checkpoint=bundled:small", "small")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "checkpoint= is empty"),
        ("ckpts/*.pt", r"-m sweep=checkpoints 'checkpoint_glob=ckpts/\*.pt'"),
        ("glob(ckpts/*)", r"-m sweep=checkpoints 'checkpoint_glob=ckpts/\*'"),
        ("nowhere/model.pt", "no such file or directory; .*nowhere does not exist either"),
        ("model.pt", "no such file or directory; .* holds other.pt"),
        ("./nothing", "no such file or directory; .* holds other.pt"),
        ("notes.txt", "files ending in .txt cannot be read"),
        ("owner/model", "no such file or directory here, and the Hugging Face hub cannot be reached"),
    ],
)
def test_what_is_not_there_is_explained(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "other.pt").touch()
    (tmp_path / "notes.txt").touch()
    assert_refused(message, source)


def test_settings_that_cannot_work_are_refused(tmp_path):
    save_llama(tmp_path)
    assert_refused("dtype=int8 is not known", tmp_path, dtype="int8")
    assert_refused("model.tokenizer=./x: there is no such directory", tmp_path, tokenizer="./x")
    with pytest.raises(UserError, match="device=cuda:99 cannot be used"):
        CheckpointLoader().load(str(tmp_path), torch.device("cuda:99"), "auto")


def test_tokenizer_of_another_directory(tmp_path):
    path = save_nanogpt(tmp_path / "c.pt", nanogpt_weights(bias=False))
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert load(path).tokenizer is None
    tokenizer = load(path, tokenizer=str(tmp_path)).tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer("ab").input_ids == byte_tokenizer().encode("ab").ids


def test_a_tokenizer_file_is_that_file(tmp_path):
    """Not the tokenizer.json beside it."""
    path = save_nanogpt(tmp_path / "c.pt", nanogpt_weights(bias=False))
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    other = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "ab": 2}, unk_token="<unk>"))
    other.save(str(tmp_path / "words.json"))
    assert load(path, tokenizer=str(tmp_path / "words.json")).tokenizer("ab").input_ids == [2]
    assert load(path, tokenizer=str(tmp_path / "tokenizer.json")).tokenizer("ab").input_ids == [
        97 - 33,
        98 - 33,
    ]
    (tmp_path / "spm.model").write_bytes(b"\n\x0e\n\x05<unk>")
    assert_refused(
        "spm.model is not a tokenizer of the `tokenizers` library",
        path,
        tokenizer=str(tmp_path / "spm.model"),
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("bundled:baseline", "baseline"),
        ("/runs/out-K=V^T/ckpt.pt", "out-K-V-T-ckpt"),
        ("/runs/baseline/checkpoint-500", "baseline-checkpoint-500"),
        ("/runs/small_model.v2.pth", "small_model.v2"),
        ("HuggingFaceTB/SmolLM2-135M", "SmolLM2-135M"),
        ("/", "checkpoint"),
    ],
)
def test_short_names(source, name):
    assert short_name(source) == name


@pytest.mark.slow
def test_real_nanogpt_checkpoint_has_its_known_validation_loss(shared_data):
    checkpoint = load(shared_data / "models" / "nanogpt-shakespeare-char" / "ckpt.pt")
    tokens = np.fromfile(shared_data / "tokens" / "shakespeare_char" / "val.bin", dtype=np.uint16)
    count = (len(tokens) - 1) // 64
    tokens = torch.from_numpy(tokens.astype(np.int64))
    inputs, targets = tokens[: count * 64].view(-1, 64), tokens[1 : count * 64 + 1].view(-1, 64)
    with torch.no_grad():
        losses = [
            F.cross_entropy(checkpoint.model(x).logits.flatten(0, 1), y.flatten(), reduction="sum")
            for x, y in zip(inputs.split(64), targets.split(64), strict=True)
        ]
    assert sum(losses) / (count * 64) == pytest.approx(1.893, abs=5e-4)


def test_real_llama_directory_is_fluent(shared_data):
    checkpoint = load(shared_data / "models" / "stories260k")
    text = (shared_data / "text" / "tinystories1000.val.txt").read_text(encoding="utf-8")[:3000]
    tokens = torch.tensor(checkpoint.tokenizer(text).input_ids[:501])
    with torch.no_grad():
        loss = F.cross_entropy(checkpoint.model(tokens[None, :-1]).logits[0], tokens[1:])
    assert loss.exp() < 8.5
    assert checkpoint.num_parameters == 260_032
