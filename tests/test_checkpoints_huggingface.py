"""Hugging Face directories, safetensors and GGUF files load to the model that was saved, or are refused."""

import hashlib
import json
import logging
import socket
from pathlib import Path

import pytest
import torch
from families import family_model
from safetensors.torch import load_file, save_file
from tiny_checkpoints import (
    TOKENS,
    assert_refused,
    byte_tokenizer,
    load,
    save_llama,
    tiny_llama,
    truncate,
    write_gguf,
)
from transformers import AutoConfig, AutoModelForCausalLM

from mechint.checkpoints import gguf
from mechint.checkpoints.checkpoint import LoadOptions
from mechint.checkpoints.huggingface import load_directory


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def llama_directory(tmp_path) -> Path:
    return save_llama(tmp_path / "my model")


@pytest.mark.usefixtures("no_network")
def test_directory_gives_a_frozen_model_and_its_tokenizer(llama_directory, capfd):
    checkpoint = load(llama_directory)
    assert torch.equal(checkpoint.model(TOKENS).logits, tiny_llama()(TOKENS).logits)
    assert not checkpoint.model.training
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())
    assert checkpoint.model.config.use_cache is False
    assert checkpoint.tokenizer("Hé").input_ids == byte_tokenizer().encode("Hé").ids
    assert checkpoint.num_parameters == sum(p.numel() for p in tiny_llama().parameters())
    assert (checkpoint.source, checkpoint.name) == (str(llama_directory), "my-model")
    weights = (llama_directory / "model.safetensors").read_bytes()
    assert checkpoint.sha256 == hashlib.sha256(weights).hexdigest()
    assert capfd.readouterr() == ("", "")


def test_tokenizer_json_alone_gets_no_tokens_of_the_architecture(tmp_path, llama_directory):
    """GPT-2's tokenizer class would add <|endoftext|> as id 256, outside the vocabulary."""
    config = {**json.loads((llama_directory / "config.json").read_text()), "model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    checkpoint = load(llama_directory, tokenizer=str(tmp_path))
    assert len(checkpoint.tokenizer) == 256


def test_safetensors_file_uses_the_config_beside_it(llama_directory):
    (llama_directory / "model.safetensors").rename(llama_directory / "step_10.safetensors")
    checkpoint = load(llama_directory / "step_10.safetensors")
    assert torch.equal(checkpoint.model(TOKENS).logits, tiny_llama()(TOKENS).logits)
    assert (checkpoint.format, checkpoint.name) == ("safetensors", "my-model-step_10")
    assert checkpoint.tokenizer is not None


@pytest.mark.parametrize("sharded", [True, False])
def test_pytorch_bin_and_shards(tmp_path, sharded):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="40KB" if sharded else "1GB")
    if not sharded:
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    files = sorted([*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")])
    assert (len(files) > 1) == sharded
    checkpoint = load(tmp_path)
    assert torch.equal(checkpoint.model(TOKENS).logits, tiny_llama()(TOKENS).logits)
    assert checkpoint.sha256 == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_dtype(tmp_path):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load(tmp_path).model.dtype == torch.float32
    assert load(tmp_path, "bfloat16").model.dtype == torch.bfloat16
    assert load_directory(tmp_path, LoadOptions(dtype="auto")).model.dtype == torch.bfloat16


def test_unused_weights_and_settings_are_noted_without_a_warning(llama_directory):
    file = llama_directory / "model.safetensors"
    save_file({**load_file(file), "value_head.weight": torch.ones(1)}, file, {"format": "pt"})
    handler, records = logging.Handler(), []
    handler.emit = records.append
    logging.getLogger("transformers").addHandler(handler)
    notes = load(llama_directory, num_heads=3, revision="main").notes
    logging.getLogger("transformers").removeHandler(handler)
    assert not records
    assert len(notes) == 3
    assert "value_head.weight" in notes[0]
    assert "model.revision has no effect" in notes[1]
    assert "model.num_heads has no effect" in notes[2]


def test_the_checkpoint_does_not_choose_the_code_that_runs(llama_directory):
    kernels = {"attn_implementation": "some/kernel", "experts_implementation": "some/kernel"}
    change_config(llama_directory, **kernels, fusion_config={"x": 1}, auto_map={"AutoConfig": "own.Config"})
    (llama_directory / "own.py").write_text("raise SystemExit('this code ran')")
    checkpoint = load(llama_directory)
    assert checkpoint.model.config._attn_implementation == "sdpa"
    assert checkpoint.model.config._experts_implementation != "some/kernel"
    assert any("its own code" in note for note in checkpoint.notes)
    assert load(llama_directory, attention="eager").model.config._attn_implementation == "eager"


def change_config(directory: Path, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def drop_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights.pop("model.layers.1.self_attn.k_proj.weight")
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def as_shards(directory: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            drop_weight,
            "lacks 1 of the weights of LlamaForCausalLM, e.g. model.layers.1.self_attn.k_proj.weight",
        ),
        (lambda d: change_config(d, num_hidden_layers=3), "lacks 9 of the weights"),
        (
            lambda d: change_config(d, intermediate_size=40),
            r"down_proj.weight is \(32, 48\) in the weights and \(32, 40\)",
        ),
        (lambda d: change_config(d, hidden_size="wide"), "not a valid llama configuration"),
        (lambda d: change_config(d, model_type="t5"), "t5 is an encoder-decoder"),
        (lambda d: (d / "config.json").write_text('{"model_type": "mamba"}'), "mamba has no attention heads"),
        (lambda d: change_config(d, model_type="vit"), "vit is not a decoder-only language model"),
        (lambda d: change_config(d, model_type="gemma3"), "gemma3 is a multimodal model"),
        (lambda d: change_config(d, model_type="nonesuch"), "does not implement model_type 'nonesuch'"),
        (
            lambda d: change_config(d, model_type="own", auto_map={"AutoConfig": "own.Config"}),
            "its own code would have to run, which is refused",
        ),
        (
            lambda d: change_config(d, quantization_config={"quant_method": "gptq"}),
            r"stored quantised \(gptq\)",
        ),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "does not hold a JSON object"),
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
        (
            lambda d: (d / "model.safetensors").rename(d / "a.safetensors"),
            "holds no weights.*checkpoint=.*a.safe",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "is empty"),
        (
            lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com"),
            "git lfs pull",
        ),
        (lambda d: truncate(d / "model.safetensors"), "not a safetensors file, or damaged"),
        (as_shards, "lacks 1 of 2 shards, e.g. model-00002"),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "an adapter, not a whole model"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer in .* cannot be loaded"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_damaged_directories_are_refused(llama_directory, damage, message):
    damage(llama_directory)
    assert_refused(message, llama_directory)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_is_decoder_false_is_judged_by_what_the_model_does(tmp_path, kind):
    family_model(kind, is_decoder=False).save_pretrained(tmp_path)
    change_config(tmp_path, is_decoder=False)
    if kind == "bert":
        assert_refused(
            r'bert reads in both directions: .* set "is_decoder": true in its config.json', tmp_path
        )
    else:
        assert load(tmp_path).architecture == "llama"


def test_attention_that_a_model_lacks_is_refused(tmp_path, llama_directory):
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model("gpt_oss", **sizes, **heads, **experts)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert load(tmp_path).model.config._attn_implementation == "eager"
    assert_refused("model.attention=sdpa does not work for GptOssForCausalLM", tmp_path, attention="sdpa")
    for unknown in ("flash_attention_2", "someone/kernel"):
        assert_refused(f"model.attention={unknown} is not known", llama_directory, attention=unknown)


@pytest.mark.usefixtures("no_network")
def test_gguf_is_the_model_it_was_made_from(tmp_path, capfd):
    model = tiny_llama(vocab_size=258)
    write_gguf(tmp_path / "tiny.gguf", model)
    checkpoint = load(tmp_path / "tiny.gguf")
    torch.testing.assert_close(checkpoint.model(TOKENS).logits, model(TOKENS).logits, atol=1e-5, rtol=1e-5)
    assert (checkpoint.format, checkpoint.name, checkpoint.vocab_size) == ("gguf", "tiny", 258)
    assert checkpoint.tokenizer("oho").input_ids == [*byte_tokenizer().encode("o").ids, 256]
    assert capfd.readouterr() == ("", "")
    checkpoint.model.save_pretrained(tmp_path / "copy")
    assert torch.equal(load(tmp_path / "copy").model(TOKENS).logits, checkpoint.model(TOKENS).logits)


def test_gguf_without_its_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gguf.importlib.util, "find_spec", lambda name: None if name == "accelerate" else object()
    )
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert_refused(r"needs accelerate to be read; pip install 'mechint\[gguf\]'", tmp_path / "a.gguf")
