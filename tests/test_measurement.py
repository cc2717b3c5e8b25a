"""Numbers mean what their definitions say."""

import math

import pytest
import torch
import torch.nn.functional as F
from architectures import tiny_model

from mechint.data.batch import Batch
from mechint.masking import MaskedModel
from mechint.masking.ablation import channel_means
from mechint.metrics.evaluation import Evaluator, faithfulness, loss_degradation_percent, measure


def test_measures_agree_with_their_definitions() -> None:
    model = tiny_model("llama")
    masked = MaskedModel(model)
    rows = torch.randint(3, 97, (5, 13), generator=torch.Generator().manual_seed(0))
    keep = torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(1)) > 0.5
    variants = {"dense": None, "masked": keep, "complement": ~keep, "empty": torch.zeros_like(keep)}
    got = measure(Evaluator(masked, Batch.of_rows(rows), at_once=2), variants, num_bytes=70).metrics

    dense = model(input_ids=rows[:, :-1], use_cache=False).logits
    logits = masked.logits(rows[:, :-1], keep.float())
    loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    kl = F.kl_div(logits.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="sum").item() / 60
    assert got["masked"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert got["masked"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert got["masked"]["bits_per_byte"] == pytest.approx(loss * 60 / math.log(2) / 70, rel=1e-5)
    assert got["masked"]["kl"] == pytest.approx(kl, rel=1e-4)
    assert got["masked"]["top1_agreement"] == int((logits.argmax(-1) == dense.argmax(-1)).sum()) / 60
    assert got["dense"]["kl"] == 0
    assert got["dense"]["top1_agreement"] == 1
    assert len({variant["loss"] for variant in got.values()}) == 4


def test_bits_per_byte_is_left_out_where_bytes_are_unknown() -> None:
    masked = MaskedModel(tiny_model("gpt2"))
    batch = Batch.of_rows(torch.randint(3, 97, (2, 9)))
    got = measure(Evaluator(masked, batch), {"dense": None}, None).metrics
    assert "bits_per_byte" not in got["dense"]


def test_ratios() -> None:
    assert loss_degradation_percent(dense=2.0, masked=2.5) == pytest.approx(25)
    assert loss_degradation_percent(dense=2.0, masked=1.5) == pytest.approx(-25)
    assert faithfulness(dense=1.0, empty=5.0, masked=1.0) == 1
    assert faithfulness(dense=1.0, empty=5.0, masked=5.0) == 0
    assert faithfulness(dense=1.0, empty=5.0, masked=0.5) > 1  # type: ignore[operator]
    assert faithfulness(dense=1.0, empty=1.0, masked=1.0) is None


def test_channel_means_are_means_of_final_keys_and_values() -> None:
    masked = MaskedModel(tiny_model("gpt2"))
    rows = torch.randint(3, 97, (4, 9))
    means = channel_means(masked, Batch.of_rows(rows), at_once=3)
    attention = masked.model.transformer.h[0]
    hidden = masked.model.transformer.wte(rows[:, :-1]) + masked.model.transformer.wpe(torch.arange(8))
    _, key, value = attention.attn.c_attn(attention.ln_1(hidden)).split(32, dim=2)
    torch.testing.assert_close(
        masked.space.view(means, 0, "k").flatten(), key.mean((0, 1)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        masked.space.view(means, 0, "v").flatten(), value.mean((0, 1)), rtol=1e-4, atol=1e-5
    )
