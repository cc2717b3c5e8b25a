"""Tiny checkpoints of every kind, and how tests load them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from mechint.checkpoints import Checkpoint, CheckpointLoader
from mechint.errors import UserError

CPU = torch.device("cpu")
VOCABULARY, POSITIONS, HEADS, WIDTH, LAYERS = 40, 12, 4, 16, 2
TOKENS = torch.arange(20).view(2, 10) * 7 % VOCABULARY


def load(source: Path | str, dtype: str = "auto", **settings) -> Checkpoint:
    return CheckpointLoader(**settings).load(str(source), CPU, dtype)


def assert_refused(message: str, source: Path | str, dtype: str = "auto", **settings) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(source, dtype, **settings)
    assert "\n" not in str(caught.value)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def byte_tokenizer() -> Tokenizer:
    """The 256 bytes as tokens and no special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def tiny_llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}
    return LlamaForCausalLM(
        LlamaConfig(**{**sizes, **heads, "bos_token_id": None, "eos_token_id": None, **changes})
    ).eval()


def save_llama(directory: Path) -> Path:
    """A Hugging Face directory with `tiny_llama` and a tokenizer.json."""
    tiny_llama().save_pretrained(directory)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def write_gguf(path: Path, model: LlamaForCausalLM, tensors: dict | None = None, **settings) -> None:
    """A llama of 258 tokens as llama.cpp stores it: with its own names, q and k rows in another order.

    tensors: others beside the weights. settings: keys of the header, `__` for a dot.
    """
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
    for key, value in settings.items():
        key = key.replace("__", ".")
        key = key if key.startswith("tokenizer.") else f"llama.{key}"
        kinds = {
            bool: writer.add_bool,
            str: writer.add_string,
            int: writer.add_uint32,
            float: writer.add_float32,
        }
        kinds[type(value)](key, value)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    writer.add_tokenizer_model("gpt2")
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ho", "<|endoftext|>"]
    writer.add_token_list(tokens)
    writer.add_token_merges(["h o"])
    writer.add_token_types([library.TokenType.NORMAL] * len(tokens))
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    names |= {"model.layers": "blk", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"}
    names |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    names |= {"self_attn.o_proj": "attn_output"}
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
    weights = {
        f"transformer.{name}": torch.randn(*shape, generator=generator) for name, shape in shapes.items()
    }
    return {**weights, "lm_head.weight": weights["transformer.wte.weight"]}


def save_nanogpt(path: Path, weights: dict[str, torch.Tensor], **settings) -> Path:
    torch.save({"model": weights, "model_args": {"n_head": HEADS, **settings}, "iter_num": 3}, path)
    return path
