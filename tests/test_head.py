"""Logits and losses from final hidden states, a few positions at a time, are those of the whole model."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, tiny_model
from torch import Tensor, nn

from mechint.data.batch import Batch
from mechint.masking import MaskedModel
from mechint.masking.head import ModelHead, WholeLogits
from mechint.metrics import KL, NLL, chunked
from mechint.metrics.dense_outputs import DenseOutputs
from mechint.metrics.evaluation import Evaluator, measure


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three positions for the tiny models' vocabulary."""
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 4 * 97 * 3)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "cohere"])
def test_every_architectures_head_is_found(
    name: str, tokens: Tensor, make_masked: Callable[[str], MaskedModel]
) -> None:
    masked = make_masked(name)
    assert isinstance(masked.head, ModelHead)
    hidden = masked.hidden(tokens)
    torch.testing.assert_close(masked.head(hidden), masked.logits(tokens))
    assert masked.head.vocab_size(hidden) == 97


def test_a_head_that_does_more_is_not_guessed(tokens: Tensor) -> None:
    model = tiny_model("llama")
    plain = type(model).forward

    class Other(type(model)):  # type: ignore[misc]
        def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            output = plain(self, *args, **kwargs)
            if "input_ids" in kwargs:  # something that the hidden states do not tell
                output.logits = output.logits + kwargs["input_ids"][..., None]
            return output

    model.__class__ = Other
    masked = MaskedModel(model)
    assert isinstance(masked.head, WholeLogits)
    assert torch.equal(masked.hidden(tokens), masked.logits(tokens))


def _plain_kl(dense: Tensor, masked: Tensor) -> Tensor:
    log, other = dense.float().log_softmax(-1), masked.float().log_softmax(-1)
    return (log.exp() * (log - other)).sum(-1)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])  # gemma2 caps its logits
@pytest.mark.parametrize("objective", ["kl", "nll"])
def test_chunked_losses_and_gradients_are_the_plain_ones(
    name: str, objective: str, tokens: Tensor, small_chunks: None
) -> None:
    masked = MaskedModel(tiny_model(name))
    keep = torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(0)) > 0.5
    weights = torch.rand(2, 15, generator=torch.Generator().manual_seed(1))
    batch = Batch.of_rows(tokens)
    inputs, targets = batch.tokens, batch.answers
    assert targets is not None
    gradients, losses = [], []
    for chunk in (False, True):
        gates = keep.float().requires_grad_()
        if chunk:
            metric = KL if objective == "kl" else NLL
            dense = masked.hidden(batch) if metric.needs_dense else None
            loss = metric.per_position(masked.hidden(batch, gates), batch, dense, masked.head)
        elif objective == "kl":
            loss = _plain_kl(masked.logits(inputs), masked.logits(inputs, gates))
        else:
            logits = masked.logits(inputs, gates).transpose(1, 2)
            loss = F.cross_entropy(logits, targets, reduction="none")
        (loss * weights).sum().backward()
        gradients.append(gates.grad)
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_one_dense_sequence_serves_many_masked_ones(small_chunks: None) -> None:
    dense, masked = torch.randn(1, 5, 97), torch.randn(3, 5, 97)
    batch = Batch(torch.zeros(3, 5, dtype=torch.long))
    torch.testing.assert_close(KL.per_position(masked, batch, dense), _plain_kl(dense, masked))


def test_chunks_cover_every_position_once() -> None:
    assert chunked.chunks(10, chunked.CHUNK_BYTES // 16) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert chunked.chunks(2, 2**40) == [slice(0, 1), slice(1, 2)]


def test_kl_of_the_same_states_is_exactly_zero(tokens: Tensor, small_chunks: None) -> None:
    masked = MaskedModel(tiny_model("gemma2"))
    batch, ones = Batch(tokens), torch.ones(masked.space.num_channels)
    assert KL.mean(masked.hidden(batch, ones), batch, masked.hidden(batch), masked.head).item() == 0


class _Watched(nn.Module):
    """An output embedding that notes how many logits it makes at a time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.most = inner, 0

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.inner(hidden)
        self.most = max(self.most, logits.numel())
        return logits


def test_no_step_or_measurement_makes_all_logits(tokens: Tensor, small_chunks: None) -> None:
    model = tiny_model("llama")
    model.lm_head = _Watched(model.lm_head)
    masked = MaskedModel(model)
    model.lm_head.most = 0
    gates = torch.ones(masked.space.num_channels, requires_grad=True)
    batch = Batch.of_rows(tokens)
    dense = DenseOutputs(masked, batch, 2**20)(torch.arange(2))
    KL.mean(masked.hidden(batch, gates), batch, dense, masked.head).backward()
    evaluator = Evaluator(masked, batch, at_once=2)
    measure(evaluator, {"dense": None, "empty": torch.zeros_like(gates).bool()}, None)
    evaluator.gradients(gates, NLL)
    assert 0 < model.lm_head.most <= 3 * 97


def test_measured_numbers_do_not_depend_on_the_chunks(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = MaskedModel(tiny_model("qwen3"))
    keep = torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(0)) > 0.5
    variants = {"dense": None, "masked": keep}
    batch = Batch.of_rows(tokens)
    whole = measure(Evaluator(masked, batch, at_once=2), variants, 30).metrics
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 4 * 97 * 4)
    parts = measure(Evaluator(masked, batch, at_once=1), variants, 30).metrics
    assert parts["dense"]["kl"] == 0
    assert parts["masked"] == pytest.approx(whole["masked"], rel=1e-5)
