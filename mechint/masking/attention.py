"""What happens where a mask acts: hooks on attention modules see their final keys and values and may change them.

How attention is made to call them is told in `mechint.masking.routing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from mechint.masking.basis import Maps
from mechint.masking.gating import gated

# Called with the attention module, query, key and value; returns the key and value to attend to.
Hook = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

# The name under which a layer's hook is kept on its attention module.
HOOK = "_mechint_hook"

# The name under which an attention module keeps the list of modules that attend to its keys and values instead of
# having their own.
READERS = "_mechint_readers"


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


def apply_hook(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The key [B, G, T, C] and value [B, G, T, C] that a module attends to."""
    hook = getattr(module, HOOK, None)
    return (key, value) if hook is None else hook(module, query, key, value)


@contextmanager
def hooks(pairs: Sequence[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Attach a hook to each attention module, and to those that read its keys and values, inside the block."""
    modules = [(reader, hook) for module, hook in pairs for reader in (module, *getattr(module, READERS, ()))]
    for module, hook in modules:
        setattr(module, HOOK, hook)
    try:
        yield
    finally:
        for module, _ in modules:
            delattr(module, HOOK)
