"""Model objects in memory are analysed as files are, and left as they were."""

from typing import Any

import numpy as np
import pytest
import torch
from families import family_model
from tiny_checkpoints import CPU, TOKENS, byte_tokenizer, load, save_llama, tiny_llama
from torch import nn
from transformers import PreTrainedTokenizerFast

from mechint.api import describe_settings
from mechint.checkpoints import CheckpointLoader, ModelInMemory
from mechint.errors import UserError
from mechint.masking import MaskedModel


def test_a_model_object_is_the_checkpoint_that_it_would_be_saved_as(tmp_path):
    model = tiny_llama()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    loader = ModelInMemory(model, tokenizer)
    checkpoint = loader.load(loader.source, CPU, "auto")
    saved = load(save_llama(tmp_path / "saved"))
    assert torch.equal(checkpoint.model(TOKENS).logits, saved.model(TOKENS).logits)
    assert checkpoint.tokenizer is tokenizer
    assert (checkpoint.source, checkpoint.format) == ("memory:LlamaForCausalLM", "memory")
    assert (checkpoint.name, len(checkpoint.sha256)) == ("LlamaForCausalLM", 64)
    assert checkpoint.attention == saved.attention


def test_the_object_stays_as_it_was():
    model = tiny_llama().train()
    before = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    config = model.config.to_dict()
    loader = ModelInMemory(model)
    checkpoint = loader.load(loader.source, CPU, "auto")
    masked = MaskedModel(checkpoint.model)
    gates = torch.zeros(masked.space.num_channels)
    with masked.gated(gates):
        assert torch.equal(model.eval()(TOKENS).logits, tiny_llama()(TOKENS).logits)
    model.train()
    assert {name: (id(p), p.requires_grad) for name, p in model.named_parameters()} == before
    assert model.config.to_dict() == config
    assert not checkpoint.model.training
    assert not any(p.requires_grad for p in checkpoint.model.parameters())
    shared = dict(checkpoint.model.named_parameters())
    assert all(
        p.data_ptr() == shared[name].data_ptr() for name, p in model.named_parameters()
    )  # no second copy
    model(TOKENS, labels=TOKENS).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in checkpoint.model.parameters())


def test_the_fingerprint_follows_the_weights():
    model = tiny_llama()
    loader = ModelInMemory(model)
    before = loader.fingerprint(loader.source)
    assert ModelInMemory(tiny_llama()).fingerprint("") == before
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert loader.fingerprint(loader.source) != before
    assert ModelInMemory(tiny_llama().to(torch.bfloat16)).fingerprint("") != before


@pytest.mark.parametrize("names", [[], ["_orig_mod"], ["_orig_mod", "module"]])
def test_wrapped_models_are_unwrapped(names):
    """As torch.compile and DistributedDataParallel keep their model."""
    model: nn.Module = tiny_llama()
    for name in names:
        wrapper = nn.Module()
        wrapper.add_module(name, model)
        model = wrapper
    assert ModelInMemory(model).source == "memory:LlamaForCausalLM"


def test_precision():
    loader = ModelInMemory(tiny_llama().to(torch.bfloat16))
    assert loader.load("", CPU, "bfloat16").model.dtype == torch.bfloat16
    assert loader.load("", CPU, "auto").model.dtype == torch.float32  # as for files on a CPU
    assert loader._model.dtype == torch.bfloat16
    with pytest.raises(UserError, match="dtype=int8 is not known"):
        loader.load("", CPU, "int8")


def test_settings_are_recorded_without_the_weights():
    loader = ModelInMemory(tiny_llama(), PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()))
    described = describe_settings({"loader": loader, "recipe": Recipe()})
    assert described["model"]["_target_"] == "mechint.checkpoints.in_memory.ModelInMemory"
    assert len(str(described)) < 500
    assert isinstance(loader, CheckpointLoader)


class Recipe:
    """No settings."""


@pytest.mark.filterwarnings("ignore")
def test_multimodal_objects_give_their_text_decoder():
    loader = ModelInMemory(family_model("llava"))
    checkpoint = loader.load(loader.source, CPU, "auto")
    assert checkpoint.architecture == "llama"
    assert "llava is multimodal" in checkpoint.notes[0]


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (nn.Linear(2, 2), "checkpoint is a Linear, but must be a path"),
        (3, "checkpoint is a int, but must be a path"),
        (np.zeros(3), "checkpoint is a ndarray, but must be"),
        (tiny_llama().model, "LlamaModel is not a language model; give one with a head"),
    ],
)
def test_other_objects_are_refused(thing: Any, message: str):
    with pytest.raises(UserError, match=message):
        ModelInMemory(thing)


def test_weights_that_are_no_numbers_are_refused():
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="memory:LlamaForCausalLM holds NaN or infinity"):
        ModelInMemory(model).load("memory:LlamaForCausalLM", CPU, "auto")
