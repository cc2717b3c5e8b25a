"""From final hidden states to logits, a few positions at a time, by the model's own code.

Logits of a whole batch are the largest tensors there are: V / D times the hidden states they come from. So hidden
states are kept, and logits are made where they are used up at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PROBE_TOKENS = 4


class WholeLogits:
    """The head of a model whose logits cannot be had from hidden states: what stands for them are the logits."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """The logits [..., V] themselves."""
        return hidden

    def vocab_size(self, hidden: Tensor) -> int:
        """V."""
        return hidden.shape[-1]


class ModelHead:
    """The end of a causal language model: output embedding, bias, scale and softcap, whatever it has.

    It is the model's own `forward` on a shallow copy whose decoder hands on the hidden states it is given.
    """

    def __init__(self, model: PreTrainedModel, make_output: Callable[..., Any], vocab_size: int) -> None:
        self._model = copy.copy(model)
        self._model._modules = {**model._modules, model.base_model_prefix: _Given(make_output)}
        self._vocab_size = vocab_size

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] for hidden states [..., D]."""
        logits = self._model(inputs_embeds=hidden.reshape(1, -1, hidden.shape[-1]), use_cache=False).logits
        return logits.view(*hidden.shape[:-1], -1)

    def vocab_size(self, hidden: Tensor) -> int:
        """V."""
        return self._vocab_size


Head = WholeLogits | ModelHead


class _Given(nn.Module):
    """Stands for a decoder whose output is known."""

    def __init__(self, make_output: Callable[..., Any]) -> None:
        super().__init__()
        self._make_output = make_output

    @property
    def decoder(self) -> _Given:
        """Itself: some models call the decoder inside their decoder."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return self._make_output(last_hidden_state=inputs_embeds)


def find_head(model: PreTrainedModel) -> Head:
    """The head of a model, tried out on a few tokens; `WholeLogits` where it does not give the model's logits."""
    tokens = torch.arange(PROBE_TOKENS, device=model.device)[None]
    if model.base_model is model:
        return WholeLogits()
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
        output = model.base_model(input_ids=tokens, use_cache=False)
        try:
            head = ModelHead(model, type(output), logits.shape[-1])
            same = torch.allclose(head(output.last_hidden_state), logits, rtol=1e-3, atol=1e-3)
        except Exception:  # whatever the code of an unknown architecture raises on what it does not expect
            same = False
    return head if same else WholeLogits()
