"""What a mask does to the model, measured with the hard mask on evaluation data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mechint.errors import UserError
from mechint.masking.masked_model import LayerRecorder, MaskedModel
from mechint.metrics.chunked import chunks
from mechint.metrics.objectives import kl_per_position, nll_per_position
from mechint.runtime import distributed


def measure(
    masked: MaskedModel,
    rows: Tensor,
    variants: dict[str, Tensor | None],
    num_bytes: int | None,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """Loss, perplexity, bits per byte, KL from the dense model and top-1 agreement with it, for several masks at
    once.

    rows: evaluation data [M, T + 1], whose first T tokens predict the last T. variants: bool [N] each, True keeps
    the channel, or float [N] gates; None is the dense model. num_bytes: UTF-8 bytes of the predicted text; where
    unknown, bits_per_byte is left out. loss and kl are means per predicted token in nats.
    """
    sums = torch.zeros(len(variants), 3, dtype=torch.double, device=masked.device)  # of nll, KL and agreement
    with torch.inference_mode():
        for chosen, weight in distributed.shares(len(rows), batch_size):
            batch = rows[chosen].to(masked.device)
            weights = weight.to(masked.device).repeat_interleave(batch.shape[1] - 1)  # [P]
            dense = masked.hidden(batch[:, :-1])  # [B, T, D]
            hidden = {name: _hidden(masked, batch, keep, dense) for name, keep in variants.items()}
            targets = batch[:, 1:].flatten()
            for chunk in chunks(len(targets), masked.head.vocab_size(dense)):
                dense_logits = masked.head(dense.flatten(0, 1)[chunk])  # [P, V]
                for number, states in enumerate(hidden.values()):
                    same = states is dense
                    logits = dense_logits if same else masked.head(states.flatten(0, 1)[chunk])
                    found = _per_position(dense_logits, logits, targets[chunk])  # [3, P]
                    sums[number] += (found * weights[chunk]).sum(1)
    tokens, totals = rows[:, 1:].numel(), distributed.total(sums).tolist()
    for name, (nats, kl, _) in zip(variants, totals, strict=True):
        if not math.isfinite(nats) or not math.isfinite(kl):
            raise UserError(
                f"the {name} model's outputs on the evaluation data are not finite; set dtype=float32"
            )
    return {name: _metrics(total, tokens, num_bytes) for name, total in zip(variants, totals, strict=True)}


def _hidden(masked: MaskedModel, batch: Tensor, keep: Tensor | None, dense: Tensor) -> Tensor:
    return dense if keep is None else masked.hidden(batch[:, :-1], keep.to(masked.device).float())


def _per_position(dense: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """NLL, KL from the dense model and agreement with it at every position, double [3, P]."""
    agree = logits.argmax(-1) == dense.argmax(-1)
    return torch.stack([nll_per_position(logits, targets), kl_per_position(dense, logits), agree]).double()


def _metrics(totals: list[float], tokens: int, num_bytes: int | None) -> dict[str, float]:
    nats, kl, agreement = totals
    loss = nats / tokens
    metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    if num_bytes is not None:
        metrics["bits_per_byte"] = nats / math.log(2) / num_bytes
    return metrics | {"kl": kl / tokens, "top1_agreement": agreement / tokens}


def loss_degradation_percent(dense: float, masked: float) -> float:
    """100 (masked - dense) / dense, from losses; negative is improvement."""
    return 100 * (masked - dense) / dense


def faithfulness(dense: float, empty: float, masked: float) -> float | None:
    """(m_masked - m_empty) / (m_dense - m_empty) with m = -loss: 1 as the dense model, 0 as the empty one.

    None where the dense and the empty model are equally good, so that the ratio has no meaning.
    """
    if dense == empty:
        return None
    return (empty - masked) / (empty - dense)


class _Means(LayerRecorder):
    """Running sums over batch and position of every channel."""

    def __init__(self, masked: MaskedModel) -> None:
        self.sums = torch.zeros(masked.space.num_channels, dtype=torch.double, device=masked.device)
        self._space = masked.space

    def __call__(self, position: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        self._space.view(self.sums, position, "k").add_(key.double().mean(2).sum(0))
        self._space.view(self.sums, position, "v").add_(value.double().mean(2).sum(0))


def channel_means(masked: MaskedModel, rows: Tensor, batch_size: int) -> Tensor:
    """Mean of every channel over calibration rows [N, T + 1], float [N channels]: what mean ablation puts in its
    place.
    """
    recorder = _Means(masked)
    with torch.no_grad(), masked.recording(recorder):
        for batch in rows.split(batch_size):
            masked.hidden(batch[:, :-1].to(masked.device))
    return (recorder.sums / len(rows)).float()
