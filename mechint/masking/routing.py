"""How attention is made to call hooks, on every architecture and without changing anything for other models.

Three ways, the first that fits:

by name: `transformers` lets an attention function registered under a name of its own see the final queries, keys and
values of nearly every causal language model (after projection, bias, QK-norm, RoPE and cache). The functions here call
the module's hook and hand over to the implementation that the model had before. The padding and sliding-window masks
are registered under the same names; without that `transformers` would silently drop them.

by module, through the interface: some architectures compute another function if they do not know the name. Their
attention modules get a forward pass of their own, the same code with another table of attention functions.

by module, without an interface: older architectures compute attention in their own code. The method or the torch
function that takes queries, keys and values is replaced for the module alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mechint.errors import UserError
from mechint.masking.attention import apply_hook

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]

# Names that contain "sdpa" make transformers refuse models whose attention sdpa cannot compute.
NAMES = {"sdpa": "mechint_sdpa", "eager": "mechint_eager"}

# The table that attention modules of transformers take their attention function from.
_TABLE = "ALL_ATTENTION_FUNCTIONS"


def enable_hooks(model: PreTrainedModel) -> str:
    """Make the attention of a model call hooks; return the name of the implementation it had.

    Raises UserError where nothing in the model can be made to.
    """
    target = _with_attention(model)
    before = target.config._attn_implementation
    if before in NAMES.values():
        return before
    kinds: set[Any] = {type(module) for module in model.modules()}
    known_names = before in NAMES and target._can_set_attn_implementation()
    if known_names and not any(_looks_at_name(kind) for kind in kinds):
        target.set_attn_implementation(NAMES[before])
    elif not sum(_route(module) for module in target.modules()):
        raise UserError(f"architecture {model.config.model_type!r} {_not_reached(target)}")
    return before


def restore_attention(model: PreTrainedModel, implementation: str) -> None:
    """Give the model back the attention that it had before `enable_hooks`."""
    target = _with_attention(model)
    if target.config._attn_implementation in NAMES.values():
        target.set_attn_implementation(implementation)
    for module in target.modules():
        for name in ("forward", *_METHODS.get(type(module).__name__, ())):
            if isinstance(method := module.__dict__.get(name), MethodType) and method.__func__ in _ROUTED:
                delattr(module, name)


# What a user whose model is refused can do.
LISTED = "use a family that mechint/checkpoints/README.md lists"

_SOFTMAX = {"softmax", "Softmax", "logsumexp", "scaled_dot_product_attention"}


def computes_softmax(module: nn.Module) -> bool:
    """Whether a module is one of softmax attention, by its name and code."""
    kind: Any = type(module)
    called = {name for code in _codes(kind) for name in code.co_names}
    return "Att" in kind.__name__ and bool(called & _SOFTMAX)


def _with_attention(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model whose configuration decides its attention: the text decoder of a multimodal model."""
    text = model.config.get_text_config()
    if text is model.config:
        return model
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is text]
    return parts[0] if parts else model


# by name


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
        key, value = apply_hook(module, query, key, value)
        return _base_function(base, module)(module, query, key, value, attention_mask, **kwargs)

    return attention


for _base, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(NAMES[_base], _hooked(_base))
    AttentionMaskInterface.register(NAMES[_base], _mask)


@cache
def _looks_at_name(kind: Any) -> bool:
    """Whether the code of a class compares the name of the implementation with that of sdpa."""
    for code in _codes(kind):
        texts = {text for part in code.co_consts for text in (part if isinstance(part, tuple) else (part,))}
        if "_attn_implementation" in code.co_names and "sdpa" in texts:
            return True
    return False


@cache
def _codes(kind: Any) -> tuple[CodeType, ...]:
    """The code of all methods that a class of transformers defines or inherits, apart from general ones."""
    classes = [base for base in kind.__mro__ if ".models." in base.__module__]
    methods = [method for base in classes for method in vars(base).values()]
    return tuple(method.__code__ for method in methods if isinstance(method, FunctionType))


# by module


def _route(module: Any) -> bool:
    """Make one module call its hook, if it is an attention module of a kind that can be made to."""
    kind = type(module)
    name = kind.__name__
    forward = kind.forward
    if isinstance(forward, FunctionType) and _TABLE in forward.__code__.co_names:
        module.forward = MethodType(_with_other_table(forward), module)
    elif all(hasattr(kind, method) for method in _METHODS.get(name, {"": None})):
        for method, routed in _METHODS[name].items():
            setattr(module, method, MethodType(routed, module))
    elif name in _FUNCTIONS and (name != "FalconAttention" or module.config._attn_implementation == "sdpa"):
        module.forward = MethodType(_intercepting_forward, module)
    else:
        return False
    return True


class _HookedTable:
    """Attention functions that call the module's hook and then do what those of transformers do."""

    def get_interface(self, name: str, default: AttentionFunction) -> AttentionFunction:
        """The attention function of a name."""
        base = ALL_ATTENTION_FUNCTIONS.get_interface(name, default)

        def attention(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            key, value = apply_hook(module, query, key, value)
            return base(module, query, key, value, *rest, **kwargs)

        return attention


@cache
def _with_other_table(forward: FunctionType) -> FunctionType:
    """The same code, but with the table of hooked attention functions."""
    names = {**forward.__globals__, _TABLE: _HookedTable()}
    made = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    _ROUTED.add(made)
    return made


def _attn(self: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kwargs: Any) -> Any:
    key, value = apply_hook(self, query, key, value)
    return type(self)._attn(self, query, key, value, *rest, **kwargs)


def _attn_of_columns(self: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kwargs: Any) -> Any:
    """For keys [B, G, C, T]."""
    key, value = apply_hook(self, query, key.transpose(-1, -2), value)
    return type(self)._attn(self, query, key.transpose(-1, -2), value, *rest, **kwargs)


def _reshape(self: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = type(self)._reshape(self, *arguments)
    return query, *apply_hook(self, query, key, value)


def _intercepting_forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
    with _Interception(self):
        return type(self).forward(self, *arguments, **keywords)


class _Interception(TorchFunctionMode):
    """Inside the block the torch function that takes an attention module's keys and values gets those of its hook."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._function, self._replacement = _FUNCTIONS[type(module).__name__]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self._function:
            return self._replacement(self._module, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _of_kv_heads(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    """Attention whose keys and values may already be repeated for the query heads of a group; hooks see them once."""
    repeats = key.shape[1] // module.num_kv_heads
    key, value = apply_hook(module, query, key[:, ::repeats], value[:, ::repeats])
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return nn.functional.scaled_dot_product_attention(query, key, value, *rest, **kwargs)


def _of_thirds(module: Any, fused: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    """Queries, keys and values [B, T, H C] from one tensor [B, T, 3 H C]."""
    states = [part.unflatten(-1, (module.n_heads, -1)).transpose(1, 2) for part in fused.chunk(3, -1)]
    states[1:] = apply_hook(module, *states)
    return tuple(part.transpose(1, 2).flatten(2) for part in states)


# Methods of attention classes that take, or give, the final queries, keys and values.
_METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    "GPTNeoSelfAttention": {"_attn": _attn},
    "GPTJAttention": {"_attn": _attn},
    "CodeGenAttention": {"_attn": _attn},
    "GPTNeoXJapaneseAttention": {"_attn": _attn},
    "BloomAttention": {"_reshape": _reshape},
    "Attention": {"_attn": _attn_of_columns},  # OpenAI GPT
}

# The torch function that takes, or gives, them in attention classes without such a method.
_FUNCTIONS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "FalconAttention": (nn.functional.scaled_dot_product_attention, _of_kv_heads),
    "MptAttention": (torch.Tensor.chunk, _of_thirds),
}

_ROUTED: set[Any] = {_attn, _attn_of_columns, _reshape, _intercepting_forward}


def _not_reached(model: nn.Module) -> str:
    if any(type(module).__name__ in _FUNCTIONS for module in model.modules()):
        return "can be masked with model.attention=sdpa alone; use that or model.attention=auto"
    own = sorted({type(module).__name__ for module in model.modules() if computes_softmax(module)})
    if not own:
        return "has no softmax attention, so no keys and values to mask; give a model that has"
    return f"computes attention in code of its own ({', '.join(own)}) that no mask reaches; {LISTED}"
