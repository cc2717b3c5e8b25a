"""nanoGPT-style checkpoints compute what nanoGPT computes, and no pickle runs code."""

import json
import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_checkpoints import (
    HEADS,
    LAYERS,
    POSITIONS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    assert_refused,
    load,
    nanogpt_weights,
    save_nanogpt,
    truncate,
)


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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("qkv", [3, 2])
def test_nanogpt_maps_onto_gpt2_exactly(tmp_path, bias, qkv):
    weights = nanogpt_weights(bias, qkv)
    checkpoint = load(save_nanogpt(tmp_path / "ckpt.pt", weights))
    logits = checkpoint.model(TOKENS).logits
    torch.testing.assert_close(logits, nanogpt_logits(weights, TOKENS), atol=1e-4, rtol=1e-5)
    assert (checkpoint.format, checkpoint.architecture, checkpoint.tokenizer) == ("nanogpt", "gpt2", None)
    assert (checkpoint.vocab_size, checkpoint.max_positions) == (VOCABULARY, POSITIONS)
    assert any("K = V in layers 0-1" in note for note in checkpoint.notes) == (qkv == 2)
    assert checkpoint.attention.tied_layers == ((0, 1) if qkv == 2 else ())


@pytest.mark.parametrize("container", ["model", "model_state_dict", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_nanogpt_containers_and_prefixes(tmp_path, container, prefix):
    weights = nanogpt_weights(bias=False)
    stored = {prefix + name: tensor for name, tensor in weights.items()}
    stored[f"{prefix}transformer.h.0.attn.bias"] = torch.ones(
        1, 1, POSITIONS, POSITIONS
    )  # a causal mask buffer
    torch.save(stored if container is None else {container: stored}, tmp_path / "c.pth")
    logits = load(tmp_path / "c.pth", num_heads=HEADS).model(TOKENS).logits
    torch.testing.assert_close(logits, nanogpt_logits(weights, TOKENS), atol=1e-4, rtol=1e-5)


def test_nanogpt_untied_output_and_padded_vocabulary(tmp_path):
    weights = nanogpt_weights(bias=True)
    weights["lm_head.weight"] = weights["lm_head.weight"].flip(0)
    checkpoint = load(save_nanogpt(tmp_path / "c.pt", weights, vocab_size=VOCABULARY - 3))
    torch.testing.assert_close(
        checkpoint.model(TOKENS).logits, nanogpt_logits(weights, TOKENS), atol=1e-4, rtol=1e-5
    )
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
        (
            lambda w: {k: v for k, v in w.items() if "h.1.mlp.c_fc" not in k},
            {},
            "lacks transformer.h.1.mlp.c_fc",
        ),
        (lambda w: {k: v for k, v in w.items() if "wpe" not in k}, {}, "not a nanoGPT-style .*wpe"),
        (lambda w: {k: v.t() if v.ndim == 2 else v for k, v in w.items()}, {}, r"stores weights \[in, out\]"),
        (lambda w: {**w, "transformer.h.1.mlp.c_fc.weight": torch.ones(3, 16)}, {}, "does not fit"),
        (lambda _: {"model.layers.0.x": torch.ones(2)}, {}, "not a nanoGPT-style .*layers.0.x"),
        (lambda _: {}, {}, "has no state dict"),
    ],
)
def test_other_models_are_refused(tmp_path, change, settings, message):
    path = save_nanogpt(tmp_path / "c.pt", change(nanogpt_weights(bias=False)), **settings)
    assert_refused(message, path)


def test_num_heads_must_not_contradict_the_checkpoint(tmp_path):
    path = save_nanogpt(tmp_path / "c.pt", nanogpt_weights(bias=False))
    assert_refused("model.num_heads=2, but .* says 4", path, num_heads=2)


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
