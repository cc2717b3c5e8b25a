"""Tiny checkpoints of every kind, and how tests load them."""

from pathlib import Path

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
