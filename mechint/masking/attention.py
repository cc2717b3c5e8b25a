"""Where a mask acts: one attention function for every architecture.

`transformers` lets an attention function registered under a name of its own see the final queries, keys and values
of nearly every causal language model (after projection, bias, QK-norm, RoPE and cache). The functions here
multiply the keys and values of a layer by its gate and hand over to the implementation the model had before, so
nothing else about attention changes. The padding and sliding-window masks are registered under the same names;
without that `transformers` would silently drop them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mechint.errors import UserError
from mechint.masking.basis import Maps
from mechint.masking.gating import gated

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]

# Called with the attention module, query, key and value; returns the key and value to attend to.
Hook = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

# The name under which a layer's hook is kept on its attention module.
HOOK = "_mechint_hook"

# Names that contain "sdpa" make transformers refuse models whose attention sdpa cannot compute.
NAMES = {"sdpa": "mechint_sdpa", "eager": "mechint_eager"}


@dataclass
class LayerGate:
    """What replaces the keys and values of one layer.

    key and value, [G, C] or one for each sequence [B, G, C], multiply; `key_fill` and `value_fill`, [G, C] or
    [B, G, T, C], take the place of what is removed (None: zero). key_maps, value_maps: the coordinates of gates and
    fills. before: whether keys are gated before they are rotated.
    """

    key: Tensor
    value: Tensor
    key_fill: Tensor | None = None
    value_fill: Tensor | None = None
    key_maps: Maps | None = None
    value_maps: Maps | None = None
    before: bool = False

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Gate key [B, G, T, C] and value [B, G, T, C]."""
        if not self.before:
            key = gated(key, self.key, self.key_fill, self.key_maps)
        return key, gated(value, self.value, self.value_fill, self.value_maps)

    def before_rotation(self, states: str, values: Tensor) -> Tensor:
        """Gate the keys [B, G, T, C] before they are rotated, if that is where the gate acts."""
        if not self.before or states != "key":
            return values
        return gated(values, self.key, self.key_fill, self.key_maps)


def _base_function(base: str, module: nn.Module) -> AttentionFunction:
    """The implementation to hand over to; "eager" is defined in each architecture's own file."""
    if base == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[base]


def _hooked(base: str) -> AttentionFunction:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        hook = getattr(module, HOOK, None)
        if hook is not None:
            key, value = hook(module, query, key, value)
        return _base_function(base, module)(module, query, key, value, attention_mask, **kwargs)

    return attention


for _base, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(NAMES[_base], _hooked(_base))
    AttentionMaskInterface.register(NAMES[_base], _mask)


def enable_hooks(model: PreTrainedModel) -> str:
    """Route the model's attention through the hooked function; return the name of the implementation it had.

    Raises UserError where the architecture does not let its attention be routed.
    """
    before = model.config._attn_implementation
    if before in NAMES.values():
        return before
    if before not in NAMES or not model._can_set_attn_implementation():
        raise UserError(
            f"architecture {model.config.model_type!r} with attention {before!r} cannot be masked; "
            "use a model whose attention goes through transformers' attention interface (model.attention=sdpa or eager)"
        )
    model.set_attn_implementation(NAMES[before])
    return before


def restore_attention(model: PreTrainedModel, implementation: str) -> None:
    """Give the model back the attention implementation it had before `enable_hooks`."""
    model.set_attn_implementation(implementation)


@contextmanager
def hooks(pairs: Sequence[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Attach a hook to each attention module for the time of the block."""
    for module, hook in pairs:
        setattr(module, HOOK, hook)
    try:
        yield
    finally:
        for module, _ in pairs:
            delattr(module, HOOK)
