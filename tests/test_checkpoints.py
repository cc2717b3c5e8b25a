"""Every kind of checkpoint loads to the function it was saved with, or is refused in one line."""

import hashlib
import json
import os
import socket
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mechint.checkpoints import Checkpoint, CheckpointLoader, bundled, bundled_names, gguf
from mechint.checkpoints.checkpoint import LoadOptions, short_name
from mechint.checkpoints.huggingface import load_directory
from mechint.errors import UserError

CPU = torch.device("cpu")
LAYERS, HEADS, WIDTH, POSITIONS, VOCABULARY = 2, 4, 16, 12, 40
TOKENS = torch.arange(20).view(2, 10) * 7 % VOCABULARY


def load(source: Path | str, dtype: str = "auto", **settings) -> Checkpoint:
    return CheckpointLoader(**settings).load(str(source), CPU, dtype)


@pytest.fixture(scope="module")
def shared_data() -> Path:
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real checkpoints of ../shared/data are not here")
    return path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


# --- nanoGPT -------------------------------------------------------------------------------------------------


def nanogpt_weights(bias: bool, qkv: int = 3) -> dict[str, torch.Tensor]:
    """Random weights by nanoGPT's names, large enough that a wrong activation or layout shows."""
    shapes = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (POSITIONS, WIDTH), "ln_f.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"h.{layer}.{norm}.weight": (WIDTH,) for norm in ("ln_1", "ln_2")}
        shapes |= {
            f"h.{layer}.attn.c_attn.weight": (qkv * WIDTH, WIDTH),
            f"h.{layer}.attn.c_proj.weight": (WIDTH, WIDTH),
            f"h.{layer}.mlp.c_fc.weight": (4 * WIDTH, WIDTH),
            f"h.{layer}.mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
        }
    if bias:
        shapes |= {
            name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items() if name[0] in "hl"
        }
    generator = torch.Generator().manual_seed(0)
    weights = {f"transformer.{name}": torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return {**weights, "lm_head.weight": weights["transformer.wte.weight"]}


def nanogpt_logits(weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """nanoGPT's forward pass (model.py), written down a second time: logits [B, T, V]."""
    get = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}.get

    def linear(x, name):
        return F.linear(x, get(f"{name}.weight"), get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), get(f"{name}.weight"), get(f"{name}.bias"), 1e-5)

    x = get("wte.weight")[tokens] + get("wpe.weight")[: tokens.shape[1]]
    for layer in range(LAYERS):
        parts = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").split(WIDTH, dim=-1)
        q, k, v = parts if len(parts) == 3 else (parts[0], parts[1], parts[1])
        q, k, v = (part.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(y, f"h.{layer}.attn.c_proj")
        hidden = F.gelu(linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"))
        x = x + linear(hidden, f"h.{layer}.mlp.c_proj")
    return F.linear(norm(x, "ln_f"), get("lm_head.weight"))


def save_nanogpt(path: Path, weights: dict[str, torch.Tensor], **settings) -> Path:
    torch.save({"model": weights, "model_args": {"n_head": HEADS, **settings}, "iter_num": 3}, path)
    return path


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("qkv", [3, 2])
def test_nanogpt_maps_onto_gpt2_exactly(tmp_path, bias, qkv):
    weights = nanogpt_weights(bias, qkv)
    checkpoint = load(save_nanogpt(tmp_path / "ckpt.pt", weights))
    logits = checkpoint.model(TOKENS).logits
    torch.testing.assert_close(logits, nanogpt_logits(weights, TOKENS), atol=1e-4, rtol=1e-5)
    assert (checkpoint.format, checkpoint.architecture, checkpoint.tokenizer) == ("nanogpt", "gpt2", None)
    assert (checkpoint.vocab_size, checkpoint.max_positions) == (VOCABULARY, POSITIONS)
    assert any("tied" in note for note in checkpoint.notes) == (qkv == 2)


@pytest.mark.parametrize("container", ["model", "model_state_dict", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_nanogpt_containers_and_prefixes(tmp_path, container, prefix):
    weights = nanogpt_weights(bias=False)
    stored = {prefix + name: tensor for name, tensor in weights.items()}
    stored[f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, POSITIONS, POSITIONS)  # a causal mask buffer
    torch.save(stored if container is None else {container: stored}, tmp_path / "c.pth")
    logits = load(tmp_path / "c.pth", num_heads=HEADS).model(TOKENS).logits
    torch.testing.assert_close(logits, nanogpt_logits(weights, TOKENS), atol=1e-4, rtol=1e-5)


def test_nanogpt_untied_output_and_padded_vocabulary(tmp_path):
    weights = nanogpt_weights(bias=True)
    weights["lm_head.weight"] = weights["lm_head.weight"].flip(0)
    checkpoint = load(save_nanogpt(tmp_path / "c.pt", weights, vocab_size=VOCABULARY - 3))
    torch.testing.assert_close(checkpoint.model(TOKENS).logits, nanogpt_logits(weights, TOKENS), atol=1e-4, rtol=1e-5)
    assert f"vocabulary padded from {VOCABULARY - 3} to {VOCABULARY}" in checkpoint.notes


def test_nanogpt_model_survives_its_file_being_overwritten(tmp_path):
    path = save_nanogpt(tmp_path / "c.pt", nanogpt_weights(bias=False))
    model = load(path).model
    before = model(TOKENS).logits
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(model(TOKENS).logits, before)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda w: w, {"n_head": None}, "does not say how many attention heads .* model.num_heads=N"),
        (lambda w: w, {"n_head": 5}, "cannot be split into 5 heads"),
        (lambda w: w, {"n_kv_head": 2}, "2 KV heads for 4 query heads"),
        (lambda w: w, {"kv_transpose_tying": True}, r"K = V\^T"),
        (lambda w: {**w, "transformer.h.0.attn.q_norm.weight": torch.ones(4)}, {}, "lacks, e.g. .*q_norm"),
        (lambda w: {k: v for k, v in w.items() if "h.1.mlp.c_fc" not in k}, {}, "lacks transformer.h.1.mlp.c_fc"),
        (lambda w: {k: v for k, v in w.items() if "wpe" not in k}, {}, "not a nanoGPT-style .*wpe"),
        (lambda w: {k: v.t() if v.ndim == 2 else v for k, v in w.items()}, {}, r"stores weights \[in, out\]"),
        (lambda w: {**w, "transformer.h.1.mlp.c_fc.weight": torch.ones(3, 16)}, {}, "does not fit"),
        (lambda w: {"model.layers.0.x": torch.ones(2)}, {}, "not a nanoGPT-style .*layers.0.x"),
        (lambda w: {}, {}, "has no state dict"),
    ],
)
def test_other_models_are_refused(tmp_path, change, settings, message):
    path = save_nanogpt(tmp_path / "c.pt", change(nanogpt_weights(bias=False)), **settings)
    assert_refused(message, path)


def test_num_heads_must_not_contradict_the_checkpoint(tmp_path):
    path = save_nanogpt(tmp_path / "c.pt", nanogpt_weights(bias=False))
    assert_refused("model.num_heads=2, but .* says 4", path, num_heads=2)


# --- Hugging Face --------------------------------------------------------------------------------------------


def byte_tokenizer() -> Tokenizer:
    """The 256 bytes as tokens and no special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def tiny_llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "bos_token_id": None, "eos_token_id": None, **changes})).eval()


@pytest.fixture
def llama_directory(tmp_path) -> Path:
    directory = tmp_path / "my model"
    tiny_llama().save_pretrained(directory)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def test_directory_gives_a_frozen_model_and_its_tokenizer(llama_directory, no_network, capfd):
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


def test_unused_weights_and_settings_are_noted(llama_directory):
    file = llama_directory / "model.safetensors"
    save_file({**load_file(file), "value_head.weight": torch.ones(1)}, file, {"format": "pt"})
    notes = load(llama_directory, num_heads=3, revision="main").notes
    assert len(notes) == 3
    assert "value_head.weight" in notes[0]
    assert "model.revision has no effect" in notes[1]
    assert "model.num_heads has no effect" in notes[2]


def test_the_checkpoint_does_not_choose_the_code_that_runs(llama_directory):
    change_config(llama_directory, attn_implementation="someone/kernel", auto_map={"AutoConfig": "own.Config"})
    (llama_directory / "own.py").write_text("raise SystemExit('this code ran')")
    checkpoint = load(llama_directory)
    assert checkpoint.model.config._attn_implementation == "sdpa"
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


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_weight, "lacks 1 of the weights of LlamaForCausalLM, e.g. model.layers.1.self_attn.k_proj.weight"),
        (lambda d: change_config(d, num_hidden_layers=3), "lacks 9 of the weights"),
        (lambda d: change_config(d, intermediate_size=40), r"is \(48, 32\) in the weights and \(40, 32\)"),
        (lambda d: change_config(d, hidden_size="wide"), "not a valid llama configuration"),
        (lambda d: change_config(d, model_type="t5"), "t5 is an encoder-decoder"),
        (lambda d: change_config(d, model_type="bert"), "bert reads in both directions"),
        (lambda d: change_config(d, model_type="mamba"), "mamba has no attention heads"),
        (lambda d: change_config(d, model_type="vit"), "vit is not a decoder-only language model"),
        (lambda d: change_config(d, model_type="gemma3"), "gemma3 is a multimodal model"),
        (lambda d: change_config(d, model_type="nonesuch"), "does not implement model_type 'nonesuch'"),
        (
            lambda d: change_config(d, model_type="own", auto_map={"AutoConfig": "own.Config"}),
            "its own code would have to run, which is refused",
        ),
        (lambda d: change_config(d, quantization_config={"quant_method": "gptq"}), r"stored quantised \(gptq\)"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "does not hold a JSON object"),
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
        (lambda d: (d / "model.safetensors").rename(d / "a.safetensors"), "holds no weights.*checkpoint=.*a.safe"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "is empty"),
        (lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com"), "git lfs pull"),
        (lambda d: truncate(d / "model.safetensors"), "not a safetensors file, or damaged"),
        (as_shards, "lacks 1 of 2 shards, e.g. model-00002"),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "an adapter, not a whole model"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer in .* cannot be loaded"),
    ],
)
def test_damaged_directories_are_refused(llama_directory, no_network, damage, message):
    damage(llama_directory)
    assert_refused(message, llama_directory)


def test_attention_that_a_model_lacks_is_refused(tmp_path, llama_directory):
    config = AutoConfig.for_model(
        "gpt_oss", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=32,
        intermediate_size=16, head_dim=8, num_local_experts=2, num_experts_per_tok=1, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert load(tmp_path).model.config._attn_implementation == "eager"
    assert_refused("model.attention=sdpa does not work for GptOssForCausalLM", tmp_path, attention="sdpa")
    assert_refused("flash_attention_2 needs a GPU", llama_directory, attention="flash_attention_2")
    assert_refused("model.attention=someone/kernel is not known", llama_directory, attention="someone/kernel")


# --- pickles -------------------------------------------------------------------------------------------------


class Intruder:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_pickles_never_run_code(tmp_path):
    torch.save({"model": nanogpt_weights(False), "x": Intruder(tmp_path / "trace")}, tmp_path / "bad.pt")
    assert_refused(r"would have to run code .*refused.* weights_only=False", tmp_path / "bad.pt")
    assert not (tmp_path / "trace").exists()
    torch.save({"model": nanogpt_weights(False), "config": Namespace(n_head=4)}, tmp_path / "old.pt")
    assert_refused(r"\(argparse.Namespace\).* torch.save\(", tmp_path / "old.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors", "a.gguf"])
def test_empty_and_damaged_files_are_refused(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / name).write_bytes(b"")
    assert_refused("is empty", tmp_path / name)
    (tmp_path / name).write_text("some text that is no checkpoint at all, but long enough for a header\n")
    assert_refused("is not a", tmp_path / name)


def test_truncated_and_unsuitable_pickles_are_refused(tmp_path):
    truncate(save_nanogpt(tmp_path / "half.pt", nanogpt_weights(bias=False)))
    assert_refused("half.pt is not a PyTorch checkpoint, or a damaged one", tmp_path / "half.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert_refused("holds a list, not a state dict", tmp_path / "list.pt")


# --- GGUF ----------------------------------------------------------------------------------------------------


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """A llama of 256 byte tokens as llama.cpp stores it: its own names, q and k rows reordered, two of Q8_0."""
    library = pytest.importorskip("gguf", reason="reading GGUF needs the extra mechint[gguf]")
    pytest.importorskip("accelerate", reason="reading GGUF needs the extra mechint[gguf]")
    config, writer = model.config, library.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_token_list(alphabet)
    writer.add_token_merges(["a b"])
    writer.add_token_types([library.TokenType.NORMAL] * len(alphabet))
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = tensor.view(heads, 2, -1, config.hidden_size).transpose(1, 2).reshape(tensor.shape)
        for old, new in names.items():
            name = name.replace(old, new)
        writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_is_the_model_it_was_made_from(tmp_path, no_network, capfd):
    write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    checkpoint = load(tmp_path / "tiny.gguf")
    torch.testing.assert_close(checkpoint.model(TOKENS).logits, tiny_llama()(TOKENS).logits, atol=1e-5, rtol=1e-5)
    assert (checkpoint.format, checkpoint.name, checkpoint.vocab_size) == ("gguf", "tiny", 256)
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer("Hé ho").input_ids) == "Hé ho"
    assert capfd.readouterr() == ("", "")
    checkpoint.model.save_pretrained(tmp_path / "copy")
    assert torch.equal(load(tmp_path / "copy").model(TOKENS).logits, checkpoint.model(TOKENS).logits)


def test_gguf_without_its_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None if name == "accelerate" else object())
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert_refused(r"needs accelerate to be read; pip install 'mechint\[gguf\]'", tmp_path / "a.gguf")


# --- which checkpoint ----------------------------------------------------------------------------------------


def test_bundled_models_are_listed_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "_ROOT", tmp_path)
    tiny_llama().save_pretrained(tmp_path / "small")
    byte_tokenizer().save(str(tmp_path / "small" / "tokenizer.json"))
    (tmp_path / "unfinished").mkdir()
    assert bundled_names() == ["small"]
    checkpoint = load("bundled:small")
    assert (checkpoint.source, checkpoint.format, checkpoint.name) == ("bundled:small", "bundled", "small")
    assert_refused("no bundled model 'large'; bundled models: bundled:small", "bundled:large")
    assert_refused("did you mean checkpoint=bundled:small", "small.pt/small")if False else None


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


def test_settings_that_cannot_work_are_refused(llama_directory):
    assert_refused("dtype=int8 is not known", llama_directory, dtype="int8")
    assert_refused("model.tokenizer=./x: there is no such directory", llama_directory, tokenizer="./x")
    with pytest.raises(UserError, match="device=cuda:99 cannot be used"):
        CheckpointLoader().load(str(llama_directory), torch.device("cuda:99"), "auto")


def test_tokenizer_of_another_directory(tmp_path):
    path = save_nanogpt(tmp_path / "c.pt", nanogpt_weights(bias=False))
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert load(path).tokenizer is None
    tokenizer = load(path, tokenizer=str(tmp_path)).tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer("ab").input_ids == byte_tokenizer().encode("ab").ids


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


def assert_refused(message: str, source: Path | str, dtype: str = "auto", **settings) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(source, dtype, **settings)
    assert "\n" not in str(caught.value)


# --- real ones -----------------------------------------------------------------------------------------------


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
