"""A note says where the token that rows begin with changes the dense model's loss."""

from __future__ import annotations

import pytest
import torch
from tiny_checkpoints import CPU, tiny_llama
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from mechint.analysis.beginning import beginning_notes
from mechint.checkpoints import ModelInMemory
from mechint.data import TokenData
from mechint.data.bos import Beginning, cut
from mechint.masking import MaskedModel

BOS, LENGTH = 0, 24
TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"<s>": BOS, "a": 1, "b": 2}, unk_token="a")), bos_token="<s>"
)
# A stream of documents of 37 tokens, each after the beginning-of-text token.
STREAM = torch.randint(1, 256, (20 * LENGTH + 1,), generator=torch.Generator().manual_seed(0))
STREAM[::38] = BOS
ROWS = STREAM[:-1].view(20, LENGTH)


def model(sign: int) -> LlamaForCausalLM:
    """One that predicts text better (+1) or worse (-1) after the token, which it has learned to use so; 0: as it is."""
    model = tiny_llama()
    with torch.no_grad():  # so that values matter
        for name, weight in model.named_parameters():
            if sign and ("v_proj" in name or "o_proj" in name or "lm_head" in name):
                weight.mul_(5)
    embedding = model.model.embed_tokens.weight
    ids = torch.cat([torch.full((20, 1), BOS), ROWS], 1)
    optimizer = torch.optim.Adam([embedding], lr=0.3)
    for _ in range(12 * abs(sign)):
        optimizer.zero_grad()
        (sign * cross_entropy(model(ids).logits[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten())).backward()
        assert embedding.grad is not None
        embedding.grad[BOS + 1 :] = 0
        optimizer.step()
    return model


def data(begin: Beginning) -> TokenData:
    """The stream in rows, as a dataset makes them."""
    rows = cut(STREAM.numpy(), None, torch.arange(20).numpy(), LENGTH, begin).batch()
    return TokenData("text", "words", rows, rows, None, "", bos=begin.tokens)


ADDED, LEFT_OUT, NONE = Beginning((BOS,), (BOS,)), Beginning((), (BOS,)), Beginning((), ())


def notes(language_model: LlamaForCausalLM, begin: Beginning) -> tuple[str, ...]:
    loader = ModelInMemory(language_model, TOKENIZER)
    checkpoint = loader.load(loader.source, CPU, "auto")
    return beginning_notes(checkpoint, MaskedModel(checkpoint.model), data(begin))


def losses(language_model: LlamaForCausalLM, rows: Tensor, skip: int) -> float:
    """The mean over rows of their mean loss over words from the answer number `skip` on."""
    with torch.no_grad():
        found = cross_entropy(language_model(rows[:, :-1]).logits.mT, rows[:, 1:], reduction="none")[:, skip:]
    words = rows[:, 1 + skip :] != BOS
    return float(((found * words).sum(1) / words.sum(1)).mean())


def test_a_loss_that_is_worse_after_the_token_is_said_with_both_numbers() -> None:
    worse = model(-1)
    (note,) = notes(worse, ADDED)
    rows = data(ADDED).evaluation.rows()
    rows = rows[rows[:, 1] != BOS]  # that begin inside of a document
    numbers = losses(worse, rows, 1), losses(worse, rows[:, 1:], 0)
    assert numbers[0] > numbers[1]
    expected = f"{numbers[0]:.3f} nats per token with it, {numbers[1]:.3f} without, on {len(rows)} rows"
    assert note.startswith(f"the dense model predicts text inside of documents worse after <s> ({expected})")
    assert "dataset.bos=false" in note


def test_a_token_that_would_help_but_is_not_added_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses as measured: lower for the longer rows, which begin with the token."""

    def measured(_: MaskedModel, rows: Tensor, counted: Tensor) -> Tensor:
        assert counted.shape[1] == LENGTH - 1
        return torch.linspace(1.0, 1.1, len(rows), dtype=torch.double) - 0.1 * (rows.shape[1] > LENGTH)

    monkeypatch.setattr("mechint.analysis.beginning._losses", measured)
    (note,) = notes(model(0), NONE)
    assert note.startswith(
        "the tokenizer has <s> but does not add it, and the dense model predicts better after"
    )
    assert "(0.950 nats per token with it, 1.050 without, on " in note
    assert "dataset.bos=true" in note


@pytest.mark.parametrize(
    ("sign", "begin"),
    [(1, ADDED), (0, ADDED), (0, NONE), (-1, NONE), (1, LEFT_OUT)],
    ids=["helps", "chance", "chance, not added", "would harm", "left out on request"],
)
def test_nothing_is_said_where_all_is_well(sign: int, begin: Beginning) -> None:
    assert notes(model(sign), begin) == ()
