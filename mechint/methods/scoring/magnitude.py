"""Channels with large weights matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mechint.masking.masked_model import MaskedModel
from mechint.masking.space import KINDS
from mechint.masking.weights import LayerRows, input_rows, output_projections
from mechint.methods.scoring.scorer import ChannelScorer
from mechint.metrics.evaluation import Evaluator


@dataclass(kw_only=True)
class Magnitude(ChannelScorer):
    """Weight norms, of both weights that a channel connects.

    K channel c of KV head g: sum over the group's query heads h of |W_Q[h, c]| |W_K[g, c]|, its part of the logits'
    bilinear form. V channel c: |W_V[g, c]| (sum_h |W_O[:, h, c]|^2)^1/2, its part of the output's linear map. Norms of
    queries and keys that a model applies afterwards do not count. No data are needed.
    Structured magnitude pruning, as in Torch-Pruning (Fang et al. 2023).
    """

    meaning: ClassVar[str] = "product of weight norms"

    def score_channels(self, calibration: Evaluator, channels: Tensor) -> int:
        """Score from weights; one token goes through the model a few times to find them."""
        masked = calibration.masked
        rows, outputs = input_rows(masked), output_projections(masked)
        for position, (inputs, projection) in enumerate(zip(rows, outputs, strict=True)):
            groups = masked.space.layers[position].num_kv_heads
            norms = self._norms(masked, position, inputs)
            query = norms["query"].unflatten(0, (groups, -1)).sum(1)  # [G, C]
            output = projection.by_group(groups).double().square().sum((0, 2)).sqrt().cpu()  # [G, C]
            masked.space.view(channels, position, "k").copy_(query * norms["key"])
            masked.space.view(channels, position, "v").copy_(norms["value"] * output)
        return 0

    def _norms(self, masked: MaskedModel, position: int, inputs: LayerRows) -> dict[str, Tensor]:
        """Norms [heads, C] of the rows that queries, keys and values are read with, in the model's basis."""
        if masked.basis is None:
            return {kind: getattr(inputs, kind).norms() for kind in ("query", "key", "value")}
        keys, values = (masked.basis.of(masked.space, position, kind) for kind in KINDS)
        groups = masked.space.layers[position].num_kv_heads
        query = inputs.query.weight().unflatten(0, (groups, -1))  # [G, R, C, D]
        rows = {
            "query": (keys.write.unsqueeze(1) @ query).flatten(0, 1),
            "key": keys.read.mT @ inputs.key.weight(),
            "value": values.read.mT @ inputs.value.weight(),
        }
        return {kind: part.double().norm(dim=-1).cpu() for kind, part in rows.items()}
