"""Every causal language model of transformers is masked as the definition says, or refused by name."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import MULTIMODAL, NOT_BUILT, REFUSED, families, family_model, wrapper_families
from tiny_checkpoints import load
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

import mechint.checkpoints
from mechint.errors import UserError
from mechint.masking import MaskedModel
from mechint.masking.examining import check_routing, examine

BATCHES = 16
# One of each kind of attention: by the interface, in code of its own, with shared keys and values, with an index, with
# latent keys, with a second path around attention.
SAMPLE = (
    *("llama", "gpt2", "gemma2", "gpt_neo", "gptj", "bloom", "falcon", "gemma3n_text"),
    *("deepseek_v3", "deepseek_v32", "qwen3_next", "lfm2"),
)
TOKENS = torch.randint(
    4, 97, (2, 16), generator=torch.Generator().manual_seed(0)
)  # longer than windows and top-k

# Here earlier tokens reach a prediction without attention: through linear attention, state spaces or convolutions.
BYPASSED = {
    *("bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid", "inkling2_text", "inkling_text", "jamba"),
    *("kimi_linear", "lfm2", "lfm2_moe", "lfm3", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text"),
    *("qwen3_5_text", "qwen3_next", "recurrent_gemma", "zamba", "zamba2", "qwen4_exp_text"),
}


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.set_verbosity(level)


def supported() -> list[str]:
    return [kind for kind in families() if kind not in {*REFUSED, *NOT_BUILT, *wrapper_families()}]


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_family_of_each_kind(kind: str, tmp_path: Path) -> None:
    assert not list(problems(kind, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_all_other_families(batch: int, tmp_path: Path) -> None:
    wrong = {}
    others = [kind for kind in supported() if kind not in SAMPLE]
    for kind in others[batch::BATCHES]:
        try:
            wrong[kind] = list(problems(kind, tmp_path / kind))
        except Exception as error:
            wrong[kind] = [f"{type(error).__name__}: {error}"]
    assert not {kind: found for kind, found in wrong.items() if found}


@torch.no_grad()
def problems(kind: str, directory: Path) -> Iterator[str]:
    """What is wrong with how a family is masked, saved and loaded."""
    model = family_model(kind)
    dense = logits(model)
    masked = MaskedModel(model)
    check_routing(masked, TOKENS)
    ones = torch.ones(masked.space.num_channels)
    if not torch.equal(masked.logits(TOKENS), dense):
        yield "changed by being made ready for masks"
    if not torch.equal(masked.logits(TOKENS, ones), dense):
        yield "changed by a mask that keeps everything"
    for position, layer in enumerate(masked.space.layers):
        for name in ("k", "v"):
            gates = ones.clone()
            masked.space.view(gates, position, name)[:] = 0
            if (masked.logits(TOKENS, gates) - dense).abs().max() < 1e-5:
                yield f"{name} of {layer.name} changes nothing"
    if examine(masked).bypassed != (kind in BYPASSED):
        yield "a second path around attention is not as expected"
    masked.close()
    if not torch.equal(logits(model), dense):
        yield "not as before when closed"
    model.save_pretrained(directory)
    if not torch.equal(logits(load(directory).model), dense):
        yield "changed by being saved and loaded"


def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("kind", REFUSED)
def test_other_families_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UserError, match=REFUSED[kind]) as refused:
        examine(MaskedModel(family_model(kind)))
    message = str(refused.value)
    assert kind in message or "BertGen" in message
    assert "; " in message  # what to do


@pytest.mark.parametrize("name", ["supported", "bypassed", "multimodal", "refused"])
def test_the_list_in_the_documentation_is_the_list_that_is_tested(name: str) -> None:
    text = (Path(mechint.checkpoints.__file__).parent / "README.md").read_text(encoding="utf-8")
    listed = text.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0]
    expected = {
        "supported": set(supported()) - BYPASSED,
        "bypassed": BYPASSED,
        "multimodal": set(MULTIMODAL),
        "refused": set(REFUSED),
    }
    assert {kind.strip() for kind in listed.replace("\n", " ").split(",")} == expected[name]
