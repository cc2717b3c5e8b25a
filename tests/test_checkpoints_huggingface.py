"""Hugging Face directories, safetensors and GGUF files load to the model that was saved, or are refused."""

import hashlib
import inspect
import json
import logging
import shutil
import socket
from pathlib import Path

import pytest
import torch
import transformers
from families import MULTIMODAL, family_model
from safetensors.torch import load_file, save_file
from tiers import rest_slow
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
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from mechint.checkpoints import gguf
from mechint.checkpoints.checkpoint import LoadOptions
from mechint.checkpoints.huggingface import DEQUANTIZING, UNPACKING, load_directory
from mechint.masking import MaskedModel


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.layers.1.self_attn.q_proj.bias": torch.ones(32)},
            r"1 tensor in its layers .*'model.ignore=\[q_proj.bias\]'",
        ),
        (
            {
                f"model.layers.{i}.self_attn.k_proj.lora_{ab}.weight": torch.ones(4, 32)
                for i in (0, 1)
                for ab in "AB"
            },
            r"4 tensors in its layers .* merge an adapter .*\[lora_A.weight,lora_B.weight\]",
        ),
        ({"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}, r"\[up_proj.weight_scale\]"),
        (
            {"model.layers.0.mlp.up_proj.weight": torch.ones(48, 32, dtype=torch.int8)},
            r"holds 1 weights as whole numbers \(torch.int8\), e.g. model.layers.0.mlp.up_proj.weight",
        ),
    ],
    ids=["bias", "adapter", "scale", "whole numbers"],
)
def test_tensors_that_change_what_a_layer_computes_are_not_left_out(llama_directory, changes, message):
    file = llama_directory / "model.safetensors"
    save_file({**load_file(file), **changes}, file, {"format": "pt"})
    assert_refused(message, llama_directory)
    if "whole" in message:
        return
    names = [name.split(".", 4)[-1] for name in changes]
    checkpoint = load(llama_directory, ignore=names)
    assert torch.equal(checkpoint.model(TOKENS).logits, tiny_llama()(TOKENS).logits)
    assert any(f"{len(changes)} tensor" in note for note in checkpoint.notes)


def test_tensors_that_hold_nothing_learned_and_whole_layers_are_left_out(llama_directory):
    file = llama_directory / "model.safetensors"
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.attn.masked_bias": torch.ones(1),
        "model.layers.2.mlp.up_proj.weight": torch.ones(48, 32),  # of a layer for several tokens at once
        "score.weight": torch.ones(2, 32),
    }
    save_file({**load_file(file), **more}, file, {"format": "pt"})
    assert torch.equal(load(llama_directory).model(TOKENS).logits, tiny_llama()(TOKENS).logits)


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
        (lambda d: change_config(d, model_type="whisper"), "whisper is an encoder-decoder model"),
        (lambda d: change_config(d, model_type="nonesuch"), "does not implement model_type 'nonesuch'"),
        (
            lambda d: change_config(d, model_type="own", auto_map={"AutoConfig": "own.Config"}),
            "its own code would have to run, which is refused",
        ),
        (
            lambda d: change_config(d, quantization_config={"quant_method": "gptq"}),
            r"stored quantised \(gptq\), which transformers cannot undo; give the unquantised model",
        ),
        (
            lambda d: change_config(d, quantization_config={"quant_method": "mxfp4"}),
            r"\(mxfp4\); .*quantization_config=transformers.Mxfp4Config\(dequantize=True\)\).save_pretrained",
        ),
        (
            lambda d: change_config(d, quantization_config={"load_in_4bit": True}),
            r"\(bitsandbytes\); .*\.dequantize\(\)\.save_pretrained\('unquantised'\) \(needs the package bits",
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


def test_directories_around_checkpoints_name_what_to_give(tmp_path, llama_directory):
    shutil.copytree(llama_directory, tmp_path / "run" / "checkpoint-100")
    assert_refused("give the directory of one checkpoint, e.g. checkpoint=.*checkpoint-100", tmp_path / "run")
    (llama_directory / "model.safetensors").unlink()
    (llama_directory / "zero_to_fp32.py").touch()
    assert_refused("python zero_to_fp32.py . .", llama_directory)


def test_remedies_for_quantised_directories_exist_in_transformers():
    for name in DEQUANTIZING.values():
        assert "dequantize" in inspect.signature(getattr(transformers, name).__init__).parameters
    for method in UNPACKING:
        quantizers = [
            AUTO_QUANTIZER_MAPPING[name] for name in AUTO_QUANTIZER_MAPPING if name.startswith(method)
        ]
        assert quantizers
        assert all("_dequantize" in vars(quantizer) for quantizer in quantizers)


@pytest.mark.parametrize(
    ("rename", "noted"),
    [
        (lambda name: f"_orig_mod.{name}", True),
        (lambda name: f"module.{name}", True),
        (lambda name: f"module._orig_mod.{name}", True),
        (lambda name: f"lightning.net.{name}", True),
        (lambda name: name.replace("self_attn.", "self_attn._checkpoint_wrapped_module."), True),
        (lambda name: name.replace("layers.", "layers._fsdp_wrapped_module."), True),
        (lambda name: name, False),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_prefixes_of_wrappers_are_removed(llama_directory, rename, noted, suffix):
    file = llama_directory / "model.safetensors"
    renamed = {rename(name): tensor for name, tensor in load_file(file).items()}
    if suffix == "bin":
        file.unlink()
        torch.save(renamed, llama_directory / "pytorch_model.bin")
    else:
        save_file(renamed, file, {"format": "pt"})
    checkpoint = load(llama_directory)
    assert torch.equal(checkpoint.model(TOKENS).logits, tiny_llama()(TOKENS).logits)
    assert any("cleaned of a wrapper's prefix" in note for note in checkpoint.notes) == noted


def test_what_comes_back_is_not_the_checkpoints_choice(llama_directory):
    change_config(llama_directory, return_dict=False, output_hidden_states=True, output_attentions=True)
    checkpoint = load(llama_directory)
    output = checkpoint.model(TOKENS)
    assert torch.equal(output.logits, tiny_llama()(TOKENS).logits)
    assert output.hidden_states is None
    assert checkpoint.model.config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", rest_slow(MULTIMODAL, ("gemma3", "llava", "mllama")))
def test_multimodal_models_give_their_text_decoder(tmp_path, kind):
    model = family_model(kind)
    tokens = TOKENS % 80 + 4
    expected = model(input_ids=tokens, use_cache=False).logits
    model.save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    assert torch.equal(checkpoint.model(input_ids=tokens).logits, expected)
    assert checkpoint.architecture == (MULTIMODAL[kind] or kind)
    assert checkpoint.notes[0].startswith(f"{kind} is multimodal: ")
    vision = [name for name, _ in checkpoint.model.named_parameters() if "vis" in name]
    assert bool(vision) == (MULTIMODAL[kind] is None)
    masked = MaskedModel(checkpoint.model)
    gates = torch.zeros(masked.space.num_channels)
    assert torch.equal(masked.logits(tokens), expected)
    assert not torch.allclose(masked.logits(tokens, gates), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_text_decoder_saved_under_its_wrappers_name_is_loaded(tmp_path):
    """As people do who train the text part alone: the class in `architectures` tells."""
    model = family_model("qwen3_5_text")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen3_5", "architectures": config["architectures"], "text_config": config})
    )
    tokens = TOKENS % 80 + 4
    assert torch.equal(load(tmp_path).model(input_ids=tokens).logits, model(input_ids=tokens).logits)


@pytest.mark.filterwarnings("ignore")
def test_models_that_do_not_read_text_alone_are_refused(tmp_path):
    family_model("blip-2").save_pretrained(tmp_path / "blip")
    assert_refused("blip-2 does not read text alone|no attention heads", tmp_path / "blip")
    family_model("paligemma").save_pretrained(
        tmp_path / "prefix"
    )  # what it is given is a prefix, read as a whole
    assert_refused("paligemma reads in both directions", tmp_path / "prefix")


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
