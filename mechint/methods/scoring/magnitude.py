"""Channels with large weights matter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mechint.masking.input_projections import row_norms
from mechint.masking.projections import output_projections
from mechint.methods.scoring.scorer import ChannelScorer
from mechint.metrics.evaluation import Evaluator


@dataclass(kw_only=True)
class Magnitude(ChannelScorer):
    """Weight norms, of both weights that a channel connects.

    K channel c of KV head g: sum over the group's query heads h of |W_Q[h, c]| |W_K[g, c]|, its part of the logits'
    bilinear form. V channel c: |W_V[g, c]| (sum_h |W_O[:, h, c]|^2)^1/2, its part of the output's linear map. Rows of
    W_Q, W_K and W_V are measured as `row_norms` says; the data matters only where these maps are not linear.
    Structured magnitude pruning, as in Torch-Pruning (Fang et al. 2023).
    """

    def score_channels(self, calibration: Evaluator, channels: Tensor) -> int:
        """Score from weights; a single token goes through the model, once for every channel of a layer."""
        masked = calibration.masked
        norms, tokens = row_norms(masked, calibration.batch.tokens[0, :1])
        for position, projection in enumerate(output_projections(masked)):
            layer, norm = masked.space.layers[position], norms[position]
            query = norm.query.unflatten(0, (layer.num_kv_heads, -1)).sum(1)  # [G, C]
            output = projection.by_group(layer.num_kv_heads).double().square().sum((0, 2)).sqrt()  # [G, C]
            masked.space.view(channels, position, "k").copy_(query * norm.key)
            masked.space.view(channels, position, "v").copy_(norm.value * output)
        return tokens
