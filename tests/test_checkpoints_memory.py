"""Model objects in memory are analysed as files are, and left as they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import family_model
from tiny_checkpoints import CPU, TOKENS, byte_tokenizer, load, save_llama, tiny_llama
from torch import nn
from transformers import PreTrainedTokenizerFast

from mechint.analysis import Controls
from mechint.api import analyze, compare_variants, describe_settings, evaluate
from mechint.checkpoints import CheckpointLoader, ModelInMemory
from mechint.data import TextFiles
from mechint.errors import UserError
from mechint.learning import MaskTrainer
from mechint.masking import MaskedModel
from mechint.reporting import Visualizer


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


def small(directory: Path) -> dict[str, Any]:
    """Settings of an analysis that takes a second."""
    text = directory / "text.txt"
    text.write_text("\n\n".join(f"{n * n} bottles and {n**3 % 97} on wall {n**5 % 101}" for n in range(400)))
    dataset = TextFiles(path=str(text), sequence_length=32, calibration_tokens=512, evaluation_tokens=256)
    return {
        "target_sparsity": 0.5,
        "steps": 3,
        "device": "cpu",
        "dataset": dataset,
        "trainer": MaskTrainer(batch_size=4),
        "visualizer": Visualizer([]),
        "controls": Controls(random_masks=0),
    }


@pytest.mark.slow
def test_analyze_takes_a_model_and_its_tokenizer(tmp_path: Path) -> None:
    model = tiny_llama().train()
    model.set_attn_implementation("eager")
    seen: list[int] = []
    hook = model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, settings = model.config.to_dict(), small(tmp_path)
    hooks = {name: dict(module._forward_hooks) for name, module in model.named_modules()}

    run = analyze(model, tmp_path / "run", tokenizer=tokenizer, **settings)

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {name: dict(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert (model.training, model.config._attn_implementation) == (True, "eager")
    assert model.config.to_dict() == config
    assert all(parameter.requires_grad for parameter in model.parameters())
    hook.remove()

    saved = analyze(str(save_llama(tmp_path / "saved")), tmp_path / "of_files", **settings)
    assert run.result.metrics.masked.loss == pytest.approx(saved.result.metrics.masked.loss, rel=1e-6)
    assert (run.result.checkpoint.source, run.result.checkpoint.format) == (
        "memory:LlamaForCausalLM",
        "memory",
    )

    # The same weights are the same run, others are not.
    assert (
        analyze(model, tmp_path / "run", tokenizer=tokenizer, **settings).result.finished
        == run.result.finished
    )
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(UserError, match="another"):
        analyze(model, tmp_path / "run", tokenizer=tokenizer, **settings)

    with pytest.raises(UserError, match="was an object in memory; give it again"):
        evaluate(run)
    loader = ModelInMemory(tiny_llama(), tokenizer)
    again = evaluate(run, loader=loader)
    assert again.metrics.masked.loss == pytest.approx(run.result.metrics.masked.loss, rel=1e-6)
    with run.masked_model(loader=loader) as masked:
        assert masked.generate("three", 4)
    with pytest.raises(UserError, match="is not the checkpoint"):
        evaluate(run, loader=ModelInMemory(model, tokenizer))

    comparison = compare_variants(
        {"memory": run.directory, "files": saved.directory}, tmp_path / "comparison", figures=[]
    )
    assert [variant.name for variant in comparison.variants] == ["memory", "files"]


@pytest.mark.slow
def test_several_seeds_of_a_model_in_memory(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    run = analyze(tiny_llama(), tmp_path / "run", tokenizer=tokenizer, seeds=2, **small(tmp_path))
    assert run.result.checkpoint.format == "memory"
    assert (tmp_path / "run" / "seed_1" / "result.json").is_file()


@pytest.mark.slow
def test_a_tokenizer_for_a_checkpoint_on_disk(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    byte_tokenizer().save(str(tmp_path / "bytes.json"))
    settings = small(tmp_path)
    run = analyze(tmp_path / "model", tmp_path / "run", tokenizer=str(tmp_path / "bytes.json"), **settings)
    assert run.result.metrics.masked.kl is not None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    with pytest.raises(UserError, match="give tokenizer= as a directory or hub id"):
        analyze(tmp_path / "model", tmp_path / "other", tokenizer=tokenizer, **settings)
    with pytest.raises(UserError, match="leave out loader="):
        analyze(tiny_llama(), tmp_path / "other", loader=CheckpointLoader(), **settings)
    with pytest.raises(UserError, match="has no tokenizer"):
        analyze(tiny_llama(), tmp_path / "other", **settings)


def test_another_tokenizer_is_another_run() -> None:
    fast = [PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()) for _ in range(2)]
    fast[1].add_tokens(["three"])
    prints = {ModelInMemory(tiny_llama(), tokenizer).fingerprint("") for tokenizer in (*fast, None)}
    assert len(prints) == 3
