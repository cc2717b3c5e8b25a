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


def nanogpt_logits(
    weights: dict[str, torch.Tensor], tokens: torch.Tensor, activation=F.gelu, epsilon: float = 1e-5
) -> torch.Tensor:
    """nanoGPT's forward pass (model.py), written down a second time: logits [B, T, V]."""
    get = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}.get

    def linear(x, name):
        return F.linear(x, get(f"{name}.weight"), get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), get(f"{name}.weight"), get(f"{name}.bias"), epsilon)

    x = get("wte.weight")[tokens] + get("wpe.weight")[: tokens.shape[1]]
    for layer in range(LAYERS):
        parts = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").split(WIDTH, dim=-1)
        q, k, v = parts if len(parts) == 3 else (parts[0], parts[1], parts[1])
        q, k, v = (part.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(y, f"h.{layer}.attn.c_proj")
        hidden = activation(linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"))
        x = x + linear(hidden, f"h.{layer}.mlp.c_proj")
    return F.linear(norm(x, "ln_f"), get("lm_head.weight"))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("qkv", [3, 2])
def test_nanogpt_maps_onto_gpt2_exactly(tmp_path, bias, qkv):
    weights = nanogpt_weights(bias, qkv)
    tying = {"kv_tying": True} if qkv == 2 else {}
    checkpoint = load(save_nanogpt(tmp_path / "ckpt.pt", weights, **tying))
    logits = checkpoint.model(TOKENS).logits
    torch.testing.assert_close(logits, nanogpt_logits(weights, TOKENS), atol=1e-4, rtol=1e-5)
    assert (checkpoint.format, checkpoint.architecture, checkpoint.tokenizer) == ("nanogpt", "gpt2", None)
    assert (checkpoint.vocab_size, checkpoint.max_positions) == (VOCABULARY, POSITIONS)
    assert any("K = V in layers 0-1" in note for note in checkpoint.notes) == (qkv == 2)
    assert checkpoint.attention.tied_layers == ((0, 1) if qkv == 2 else ())


@pytest.mark.parametrize("container", ["model", "model_state_dict", "state_dict", None])
@pytest.mark.parametrize(
    "prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module."]
)
def test_nanogpt_containers_and_prefixes(tmp_path, container, prefix):
    weights = nanogpt_weights(bias=False)
    stored = {prefix + name: tensor for name, tensor in weights.items()}
    stored[f"{prefix}transformer.h.0.attn.bias"] = torch.ones(
        1, 1, POSITIONS, POSITIONS
    )  # a causal mask buffer
    torch.save(stored if container is None else {container: stored}, tmp_path / "c.pth")
    logits = load(tmp_path / "c.pth", num_heads=HEADS).model(TOKENS).logits
    torch.testing.assert_close(logits, nanogpt_logits(weights, TOKENS), atol=1e-4, rtol=1e-5)


NARROW = nanogpt_weights(bias=False, qkv=2)


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ({}, {"kv_tying": True}),
        ({"n_query_groups": HEADS}, {}),
        ({"tie_kv": True}, {}),
        ({"n_kv_head": 4}, {}),
    ],
)
def test_a_narrow_c_attn_is_tied_where_somebody_says_so(tmp_path, stored, given):
    checkpoint = load(save_nanogpt(tmp_path / "c.pt", NARROW, **stored), **given)
    expected = nanogpt_logits(NARROW, TOKENS)
    torch.testing.assert_close(checkpoint.model(TOKENS).logits, expected, atol=1e-4, rtol=1e-5)
    assert checkpoint.attention.tied_layers == (0, 1)


@pytest.mark.parametrize("name", ["n_query_groups", "kv_heads", "n_kv_group", "num_kv_heads"])
def test_grouped_queries_are_not_read_as_tied(tmp_path, name):
    assert_refused(
        "does not say what that is: .* model.kv_tying=true", save_nanogpt(tmp_path / "a.pt", NARROW)
    )
    path = save_nanogpt(tmp_path / "b.pt", NARROW, **{name: 2})
    assert_refused("has 2 KV heads for 4 query heads", path)
    assert_refused("has 2 KV heads for 4 query heads", path, kv_tying=False)
    odd = {n: w[: w.shape[0] * 3 // 4] if "c_attn" in n else w for n, w in NARROW.items()}
    assert_refused(
        "c_attn of width 24 for 16 channels, so it has grouped", save_nanogpt(tmp_path / "c.pt", odd)
    )


@pytest.mark.parametrize(
    ("settings", "activation", "epsilon"),
    [
        ({"activation": "relu"}, F.relu, 1e-5),
        ({"act": "gelu_tanh", "norm_eps": 1e-2}, lambda x: F.gelu(x, approximate="tanh"), 1e-2),
        ({"mlp_activation": "relu_squared"}, lambda x: F.relu(x).square(), 1e-5),
        (
            {"hidden_act": "silu", "norm": "LayerNorm", "window_size": None, "logit_softcap": 0.0},
            F.silu,
            1e-5,
        ),
    ],
)
def test_known_settings_of_forks_are_followed(tmp_path, settings, activation, epsilon):
    weights = nanogpt_weights(bias=True)
    logits = load(save_nanogpt(tmp_path / "c.pt", weights, **settings)).model(TOKENS).logits
    torch.testing.assert_close(
        logits, nanogpt_logits(weights, TOKENS, activation, epsilon), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"logit_softcap": 15.0},
            r"could change what it computes: logit_softcap=15.0; .*'model.ignore=\[logit_softcap\]'",
        ),
        ({"window_size": 8, "qk_norm": True}, r"model.ignore=\[window_size,qk_norm\]"),
        ({"anything": 3}, "anything=3"),
        ({"activation": "mish"}, "activation 'mish', which is not known; use one of gelu, gelu_new, relu"),
        ({"norm_type": "RMSNorm"}, "says norm 'RMSNorm', but GPT-2 has layer norms"),
        ({"n_layer": 3}, "says n_layer=3, but its weights have 2"),
        ({"n_embd": 32}, "says n_embd=32, but its weights have 16"),
    ],
)
def test_settings_that_would_change_the_function_are_refused(tmp_path, settings, message):
    path = save_nanogpt(tmp_path / "c.pt", nanogpt_weights(bias=True), **settings)
    assert_refused(message, path)


def test_settings_are_ignored_on_request(tmp_path):
    path = save_nanogpt(tmp_path / "c.pt", nanogpt_weights(bias=True), window_size=99, norm="own")
    checkpoint = load(path, ignore=["window_size", "norm"])
    assert "settings of the checkpoint ignored on request: window_size, norm" in checkpoint.notes
    assert_refused("window_size=99", path, ignore=["norm"])


@pytest.mark.parametrize("place", ["config", "hyper_parameters", "nested", "model_config"])
def test_settings_are_found_where_trainers_put_them(tmp_path, place):
    """A training configuration is full of settings that change nothing, but `logit_softcap` is none of those."""
    training = {"learning_rate": 1e-3, "wandb_log": True, "out_dir": "x", "my_own_flag": 3, "data_mix": [1]}
    stated = {"n_head": HEADS, "activation": "relu"}
    stored = {"model": {**stated}, "trainer": training} if place == "nested" else {**stated, **training}
    if place == "model_config":
        stored = stated
    weights = nanogpt_weights(bias=True)
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    content = {"state_dict": named, "config" if place == "nested" else place: stored, "best_val_loss": 1.5}
    torch.save(content, tmp_path / "last.ckpt")
    checkpoint = load(tmp_path / "last.ckpt")
    expected = nanogpt_logits(weights, TOKENS, F.relu)
    torch.testing.assert_close(checkpoint.model(TOKENS).logits, expected, atol=1e-4, rtol=1e-5)
    assert checkpoint.stated_loss == 1.5
    assert (
        "the checkpoint names a validation loss of 1.5000 on the data it was trained with" in checkpoint.notes
    )
    stored["logit_softcap"] = 30.0
    torch.save(content, tmp_path / "last.ckpt")
    assert_refused("logit_softcap=30.0", tmp_path / "last.ckpt")


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
        (lambda w: w, {"k_eq_vt": True}, r"K = V\^T"),
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
