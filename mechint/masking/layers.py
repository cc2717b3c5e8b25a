"""Which layers of a model a mask acts on, found by running it on a few tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mechint.errors import UserError
from mechint.masking.attention import READERS, hooks
from mechint.masking.routing import LISTED, computes_softmax
from mechint.masking.space import ChannelSpace, LayerShape

NUM_TOKENS = 4


@dataclass(frozen=True)
class _Call:
    """An attention module that ran, and what it attended to."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor


def find_layers(model: PreTrainedModel) -> tuple[list[nn.Module], ChannelSpace]:
    """The attention modules that have keys and values of their own, in the order of their layers.

    A module that attends to the keys and values of an earlier one has no channels of its own: the earlier one's mask
    acts there too. Layers without softmax attention (linear attention, state spaces, convolutions) are left out; see
    `other_layers`.

    Raises UserError where softmax attention is not reached, or runs more than once in a pass.
    """
    calls = _watch(model)
    kind = model.config.model_type
    if len({id(call.module) for call in calls}) < len(calls):
        raise UserError(
            f"architecture {kind!r} is not supported: its attention modules run more than once in a pass; give a model "
            "in which every layer runs once"
        )
    names = {id(module): name for name, module in model.named_modules()}
    called = {id(call.module) for call in calls}
    for layer in _other_layers(model, [names[id(call.module)] for call in calls]).values():
        unreached = [m for m in layer.modules() if id(m) not in called and computes_softmax(m)]
        if unreached:
            raise UserError(
                f"architecture {kind!r} is not supported: no mask reaches the attention of {names[id(unreached[0])]} "
                f"({type(unreached[0]).__name__}); {LISTED}"
            )
    if not calls:
        raise UserError(
            f"architecture {kind!r} runs no softmax attention, so there are no keys and values to mask; give a model "
            "that does"
        )
    heads = _kv_heads(model.config.get_text_config())
    if any(heads is not None and call.key.shape[1] > heads and _repeats(call.key) for call in calls):
        raise UserError(
            f"architecture {kind!r} is not supported: it repeats its {heads} KV heads before attention, where masks "
            f"act; {LISTED}"
        )
    own: dict[int, _Call] = {}  # by the identity of the keys
    readers: dict[int, list[nn.Module]] = {}
    for call in calls:
        if id(call.key) in own:
            readers.setdefault(id(call.key), []).append(call.module)
        else:
            own[id(call.key)] = call
    for key, call in own.items():
        setattr(call.module, READERS, readers.get(key, []))
    found = [(call.module, _shape(call, names[id(call.module)], i)) for i, call in enumerate(own.values())]
    found.sort(key=lambda pair: pair[1].index)
    return [module for module, _ in found], ChannelSpace(tuple(shape for _, shape in found))


def other_layers(model: PreTrainedModel, space: ChannelSpace) -> dict[int, str]:
    """Layers without keys and values that a mask can act on: number -> class of what they have instead.

    Those that read the keys and values of an earlier layer are not among them.
    """
    readers = [
        name
        for name, module in model.named_modules()
        if any(module in getattr(model.get_submodule(layer.name), READERS, ()) for layer in space.layers)
    ]
    layers = _other_layers(model, [*(layer.name for layer in space.layers), *readers])
    return {number: _mixer(layer) for number, layer in layers.items()}


def shared_layers(model: PreTrainedModel, space: ChannelSpace) -> dict[int, list[str]]:
    """Layers whose keys and values others read instead of having their own: number -> names of these others."""
    names = {id(module): name for name, module in model.named_modules()}
    readers = {
        layer.index: [names[id(reader)] for reader in getattr(model.get_submodule(layer.name), READERS, ())]
        for layer in space.layers
    }
    return {number: found for number, found in readers.items() if found}


def some_tokens(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    """Tokens [rows, length] of running text, on the model's device: different ones where the vocabulary allows it.

    None of those that the configuration names: padding moves positions in some architectures, and others stand for
    images.
    """
    named: set[int] = set()
    for config in (model.config, model.config.get_text_config()):
        for name, value in vars(config).items():
            if re.search(r"token_(id|ids|index)$", name):
                named.update(value if isinstance(value, list) else [value])
    usable = [token for token in range(model.config.get_text_config().vocab_size) if token not in named]
    step = max(1, len(usable) // (rows * length))
    chosen = [usable[i * step % len(usable)] for i in range(rows * length)]
    return torch.tensor(chosen, device=model.device).view(length, rows).T.contiguous()


def _watch(model: PreTrainedModel) -> list[_Call]:
    """The attention modules in the order in which they run."""
    calls: list[_Call] = []

    def see(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(_Call(module, query, key, value))
        return key, value

    tokens = some_tokens(model, 1, NUM_TOKENS)
    for module in model.modules():
        module.__dict__.pop(READERS, None)
    with hooks([(module, see) for module in model.modules()]), torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    return calls


def _shape(call: _Call, name: str, order: int) -> LayerShape:
    number = re.search(r"\.(\d+)\.", f"{name}.")
    index = getattr(call.module, "layer_idx", None)
    return LayerShape(
        name=name,
        index=int((number[1] if number else order) if index is None else index),
        num_query_heads=call.query.shape[1],
        num_kv_heads=call.key.shape[1],
        key_width=call.key.shape[3],
        value_width=call.value.shape[3],
    )


def _other_layers(model: PreTrainedModel, reached: list[str]) -> dict[int, nn.Module]:
    """The layers without any of the reached modules, by number."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    count = model.config.get_text_config().num_hidden_layers
    around = [name for name in lists if len(lists[name]) == count]
    if reached:
        around = [name for name in around if reached[0].startswith(f"{name}.")]
    if not around:
        return {}
    prefix = min(around, key=len)
    numbers = {
        int(name.removeprefix(f"{prefix}.").split(".")[0]) for name in reached if name.startswith(prefix)
    }
    return {i: layer for i, layer in enumerate(lists[prefix]) if i not in numbers}


def _kv_heads(config: PreTrainedConfig) -> int | None:
    """The number of KV heads, None where the configuration does not name one for all layers."""
    try:
        return getattr(config, "num_key_value_heads", None)
    except RuntimeError:  # transformers refuses to name one number where it differs between layers
        return None


def _repeats(key: Tensor) -> bool:
    """Whether some heads of keys [B, G, T, C] are copies of others."""
    return len(torch.unique(key[0].flatten(1), dim=0)) < key.shape[1]


def _mixer(layer: nn.Module) -> str:
    """The class of what mixes positions in a layer, else of its first part that is no norm."""
    parts = [type(part).__name__ for part in layer.children()]
    others = [name for name in parts if not re.search(r"Norm|Dropout", name)]
    mixing = [name for name in others if not re.search(r"MLP|MoE|Moe|Experts|FeedForward|Linear$", name)]
    return (mixing or others or [type(layer).__name__])[0]
