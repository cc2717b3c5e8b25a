"""GGUF files compute what their headers say, or are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoints import assert_refused, load, tiny_llama, truncate, write_gguf
from transformers import LlamaForCausalLM

TOKENS = torch.arange(128).view(2, 64) * 7 % 250
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def scaled_llama(**parameters: Any) -> LlamaForCausalLM:
    model = tiny_llama(
        vocab_size=258, rope_parameters={"rope_theta": 10000.0, "rope_type": "default", **parameters}
    )
    for layer in model.model.layers:  # so that positions matter
        layer.self_attn.q_proj.weight.data *= 20
        layer.self_attn.k_proj.weight.data *= 20
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def frequencies(model: LlamaForCausalLM) -> np.ndarray:
    return model.model.rotary_emb.inv_freq.numpy()


@pytest.mark.parametrize(
    ("parameters", "settings"),
    [
        (
            {"rope_type": "linear", "factor": 4.0},
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
        ),
        ({"rope_type": "linear", "factor": 2.0}, {"rope__scale_linear": 2.0}),
        (
            YARN,
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 16,
                "rope__scaling__finetuned": True,
            },
        ),
        (
            {**YARN, "attention_factor": 0.5 * (1 + 0.1 * np.log(4.0)), "beta_fast": 16.0},
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 16,
                "rope__scaling__attn_factor": 0.5,
                "rope__scaling__yarn_beta_fast": 16.0,
            },
        ),
        ({}, {"rope__scaling__type": "none"}),
    ],
)
def test_rotary_scaling_is_carried_over(
    tmp_path: Path, parameters: dict[str, Any], settings: dict[str, Any]
) -> None:
    model = scaled_llama(**parameters)
    write_gguf(tmp_path / "m.gguf", model, **settings)
    checkpoint = load(tmp_path / "m.gguf")
    torch.testing.assert_close(logits(checkpoint.model), logits(model), atol=1e-5, rtol=1e-4)
    if parameters:
        assert not torch.allclose(logits(model), logits(scaled_llama()), atol=1e-3)
    assert any("rotary scaling" in note for note in checkpoint.notes) == bool(parameters)


def test_frequency_factors_of_llama_3_are_carried_over(tmp_path: Path) -> None:
    model = scaled_llama(**LLAMA3, original_max_position_embeddings=16)
    factors = frequencies(scaled_llama()) / frequencies(model)
    assert factors.max() > 4
    write_gguf(tmp_path / "m.gguf", model, {"rope_freqs.weight": factors})
    loaded = load(tmp_path / "m.gguf").model
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-4)
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(load(tmp_path / "again").model), logits(model), atol=1e-5, rtol=1e-4)


def test_long_and_short_factors_are_carried_over(tmp_path: Path) -> None:
    short, long = [1.0, 1.5, 2.0, 2.5], [1.0, 2.0, 4.0, 8.0]
    model = scaled_llama(
        rope_type="longrope",
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=32,
        attention_factor=1.25,
    )
    write_gguf(
        tmp_path / "m.gguf",
        model,
        {"rope_factors_long.weight": long, "rope_factors_short.weight": short},
        rope__scaling__original_context_length=32,
        rope__scaling__attn_factor=1.25,
    )
    checkpoint = load(tmp_path / "m.gguf")
    for tokens in (TOKENS, TOKENS[:, :20]):
        with torch.no_grad():
            torch.testing.assert_close(
                checkpoint.model(tokens).logits, model(tokens).logits, atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"rope__scaling__type": "magic", "rope__scaling__factor": 2.0}, {}, "rope.scaling.type='magic'"),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__yarn_log_multiplier": 0.1},
            {},
            "yarn_log_multiplier=0.1",
        ),
        ({"rope__scaling__type": "linear", "rope__scaling__own": 3}, {}, "rope.scaling.own=3"),
        ({"rope__new": 3}, {}, "rope.new=3"),
        ({"rope__dimension_count": 4}, {}, None),
        (
            {"attn_logit_softcapping": 30.0},
            {},
            r"attn_logit_softcapping=30.0 .*'model.ignore=\[attn_logit_softcapping\]'",
        ),
        ({"attention__causal": False}, {}, "attention.causal=False"),
        (
            {},
            {"blk.0.attn_q.bias": [0.5] * 32},
            "has 1 tensors that LlamaForCausalLM has no place for, e.g. blk.0.attn_q.bias",
        ),
        ({}, {"rope_factors_long.weight": [1.0] * 4}, "lacks one of rope_factors_long"),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0},
            {"rope_freqs.weight": [2.0] * 4},
            "twice",
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], tensors: dict[str, Any], message: str | None
) -> None:
    write_gguf(tmp_path / "m.gguf", scaled_llama(), tensors, **settings)
    if message is None:  # head_dim follows from it, so the weights do not fit
        message = "does not fit its configuration|cannot be loaded|rotates 4 of the"
    assert_refused(message, tmp_path / "m.gguf")


def test_a_header_is_ignored_on_request(tmp_path: Path) -> None:
    model = scaled_llama()
    write_gguf(tmp_path / "m.gguf", model, something=3, attention__key_length=8, attention__value_length=8)
    assert_refused("something=3", tmp_path / "m.gguf")
    loaded = load(tmp_path / "m.gguf", ignore=["something"])
    torch.testing.assert_close(logits(loaded.model), logits(model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("adds", [True, False])
def test_bos_is_added_where_the_header_says_so(tmp_path: Path, adds: bool) -> None:
    write_gguf(
        tmp_path / "m.gguf",
        scaled_llama(),
        tokenizer__ggml__add_bos_token=adds,
        tokenizer__ggml__bos_token_id=257,
    )
    tokenizer = load(tmp_path / "m.gguf").tokenizer
    assert tokenizer is not None
    assert (tokenizer("oho").input_ids[0] == 257) == adds


def split_gguf(file: Path, count: int) -> list[Path]:
    """The same model in parts, as llama.cpp's gguf-split writes them."""
    library = pytest.importorskip("gguf")
    reader = library.GGUFReader(file)
    parts = []
    for number in range(count):
        part = file.parent / f"{file.stem}-{number + 1:05d}-of-{count:05d}.gguf"
        writer = library.GGUFWriter(part, "llama")
        if number == 0:
            for name, field in reader.fields.items():
                if not name.startswith("GGUF.") and name != "general.architecture":
                    inner = field.types[-1] if field.types[0] == library.GGUFValueType.ARRAY else None
                    writer.add_key_value(name, field.contents(), field.types[0], inner)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(part)
    return parts


@pytest.mark.slow
def test_split_files_are_put_together(tmp_path: Path) -> None:
    model = scaled_llama(**YARN)
    settings = {"type": "yarn", "factor": 4.0, "original_context_length": 16}
    write_gguf(
        tmp_path / "m.gguf", model, **{f"rope__scaling__{key}": value for key, value in settings.items()}
    )
    parts = split_gguf(tmp_path / "m.gguf", 3)
    for part in (parts[0], parts[2]):
        checkpoint = load(part)
        torch.testing.assert_close(logits(checkpoint.model), logits(model), atol=1e-5, rtol=1e-4)
        assert checkpoint.tokenizer is not None
    assert len({load(part).sha256 for part in parts}) == 1
    truncate(parts[1])
    assert_refused("damaged one", parts[0])
    parts[1].unlink()
    assert_refused("lacks 1 of 3 parts, e.g. m-00002-of-00003.gguf", parts[0])
