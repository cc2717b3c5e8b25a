"""nanoGPT-style checkpoints, mapped one to one onto transformers' GPT-2.

nanoGPT (github.com/karpathy/nanoGPT, model.py) computes GPT-2's function in another form: its linear layers
store weights [out, in] where GPT-2's Conv1D stores [in, out], its GELU is the exact one, biases are optional.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config

from mechint.checkpoints.checkpoint import LoadedModel, LoadOptions
from mechint.checkpoints.instantiate import instantiate
from mechint.checkpoints.nanogpt_settings import (
    HEADS,
    LAYERS,
    TRANSPOSED,
    VOCABULARY,
    WIDTH,
    Settings,
    read_settings,
)
from mechint.checkpoints.pickles import read_pickle
from mechint.errors import UserError

_CONTAINERS = ("model", "model_state_dict", "state_dict")
_STATED_LOSSES = ("best_val_loss", "val_loss")
_WRAPPERS = r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_EMBEDDING = "transformer.wte.weight"
_POSITIONS = "transformer.wpe.weight"
_FIRST_QKV = "transformer.h.0.attn.c_attn.weight"
_FIRST_MLP = "transformer.h.0.mlp.c_fc.weight"
_LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_PARTS = ("ln_1", "ln_2", *_LINEARS)
_GPT2_VOCABULARY, _GPT2_PADDED = 50257, 50304  # nanoGPT rounds GPT-2's vocabulary up to a multiple of 64


def load_nanogpt(path: Path, options: LoadOptions) -> LoadedModel:
    """The model of a state dict, bare or under `model`, `model_state_dict` or `state_dict`.

    Sizes are read off the weights; only the number of heads, which leaves no trace in them, must come from
    `model_args` or `config` in the checkpoint, or from `options.num_heads`. Such files hold no tokenizer.
    Raises `UserError` for everything that does not compute GPT-2's function.
    """
    checkpoint = read_pickle(path)
    settings = read_settings(checkpoint, path, options.ignore)
    weights = _plain_names(_state_dict(checkpoint, path))
    _refuse_other_models(weights, settings, path)
    heads = _num_heads(weights, settings, options.num_heads, path)
    _refuse_grouped(weights, settings, heads, options.kv_tying)
    config = _config(path, weights, heads, settings)
    notes = []
    if unpadded := _unpadded_vocabulary(settings, config.vocab_size):
        notes.append(f"vocabulary padded from {unpadded} to {config.vocab_size}")
    if options.ignore:
        notes.append(f"settings of the checkpoint ignored on request: {', '.join(options.ignore)}")
    stated = _stated_loss(checkpoint)
    if stated is not None:
        notes.append(
            f"the checkpoint names a validation loss of {stated:.4f} on the data it was trained with"
        )
    model, unused = instantiate(config, _gpt2_weights(weights, config, path), options, path)
    return LoadedModel(model, (path,), None, (*notes, *unused), stated)


def _stated_loss(checkpoint: Mapping[str, Any]) -> float | None:
    """The validation loss that a checkpoint names, in nats per token."""
    for name in _STATED_LOSSES:
        value = checkpoint.get(name)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, int | float) and 0 < value < 100:
            return float(value)
    return None


def _state_dict(checkpoint: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
    inner = next(
        (checkpoint[key] for key in _CONTAINERS if isinstance(checkpoint.get(key), Mapping)), checkpoint
    )
    if not inner or not all(isinstance(key, str) and isinstance(inner[key], Tensor) for key in inner):
        keys = ", ".join(map(str, list(checkpoint)[:6])) or "none"
        raise UserError(
            f"{path} has no state dict under {', '.join(_CONTAINERS)} or at the top (keys: {keys})"
        )
    return inner


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefixes of torch.compile and distributed training and without causal masks."""
    plain = {}
    for name, tensor in weights.items():
        name = re.sub(r"^(module\.|model\.|net\.|gpt\.)+", "", re.sub(_WRAPPERS, "", name))
        if not re.search(r"\.attn\.(masked_)?bias$", name):
            plain[name] = tensor
    return plain


def _refuse_other_models(weights: dict[str, Tensor], settings: Settings, path: Path) -> None:
    absent = [name for name in (_EMBEDDING, _POSITIONS, _FIRST_QKV, _FIRST_MLP) if name not in weights]
    if absent:
        raise UserError(
            f"{path} is not a nanoGPT-style checkpoint (no {absent[0]}; first: {next(iter(weights), '')}); "
            "save other models with save_pretrained and give the directory"
        )
    if bent := [n for n in (_EMBEDDING, _POSITIONS, _FIRST_QKV, _FIRST_MLP) if weights[n].ndim != 2]:
        raise UserError(
            f"{path}: {bent[0]} is not a matrix, so it does not fit nanoGPT's model; save it again"
        )
    if weights[_FIRST_MLP].shape[1] != weights[_EMBEDDING].shape[1]:
        raise UserError(
            f"{path} stores weights [in, out] as transformers' GPT-2 does, unlike nanoGPT; save that model "
            "with save_pretrained and give the directory"
        )
    if settings.first(TRANSPOSED):
        raise UserError(f"{path} ties K = V^T; save c_attn.weight with the rows of q, k and v written out")
    sizes = {"n_layer": (LAYERS, _num_layers(weights)), "n_embd": (WIDTH, weights[_EMBEDDING].shape[1])}
    for name, (names, there) in sizes.items():
        stated = settings.first(names)
        if stated is not None and stated != there:
            raise UserError(f"{path} says {name}={stated}, but its weights have {there}; save it again")


def _num_layers(weights: Mapping[str, Tensor]) -> int:
    numbers = {int(match[1]) for name in weights if (match := re.match(r"transformer\.h\.(\d{1,9})\.", name))}
    return len(numbers)


def _refuse_grouped(
    weights: dict[str, Tensor], settings: Settings, heads: int, kv_tying: bool | None
) -> None:
    """Raise UserError where there are fewer KV heads than query heads, or nobody says what a narrow c_attn is."""
    width, path = weights[_EMBEDDING].shape[1], settings.path
    rows, kv_heads = weights[_FIRST_QKV].shape[0], settings.kv_heads
    narrow = rows == 2 * width
    if narrow and (kv_tying or (kv_tying is None and (settings.tied or kv_heads == heads))):
        return
    if kv_heads is not None and kv_heads != heads:
        raise UserError(
            f"{path} has {kv_heads} KV heads for {heads} query heads, which GPT-2 cannot express; save it as "
            "a Hugging Face directory of an architecture that can (llama)"
        )
    if narrow:
        raise UserError(
            f"{path} has c_attn of width {rows} for {width} channels, and does not say what that is: one projection "
            f"for keys and values (then give model.kv_tying=true), or {heads} query heads with half as many KV heads, "
            "which GPT-2 cannot express"
        )
    if rows != 3 * width:
        raise UserError(
            f"{path} has c_attn of width {rows} for {width} channels, so it has grouped queries, which GPT-2 cannot "
            "express; save it as a Hugging Face directory of an architecture that can (llama)"
        )


def _num_heads(weights: dict[str, Tensor], settings: Settings, given: int | None, path: Path) -> int:
    stored, width = settings.first(HEADS), weights[_EMBEDDING].shape[1]
    if stored is None and given is None:
        raise UserError(f"{path} does not say how many attention heads it has; give model.num_heads=N")
    if stored is not None and given is not None and stored != given:
        raise UserError(f"model.num_heads={given}, but {path} says {stored}; leave model.num_heads out")
    heads = given if stored is None else stored
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(
            f"{path}: its width {width} cannot be split into {heads} heads; correct model.num_heads"
        )
    return heads


def _config(path: Path, weights: dict[str, Tensor], heads: int, settings: Settings) -> GPT2Config:
    layers = {int(match[1]) for name in weights if (match := re.match(r"transformer\.h\.(\d{1,9})\.", name))}
    if max(layers) >= len(layers):
        raise UserError(
            f"{path} lacks layers: {len(layers)} are there, the last is number {max(layers)}; save it again"
        )
    output = weights.get("lm_head.weight")
    return GPT2Config(
        vocab_size=weights[_EMBEDDING].shape[0],
        n_positions=weights[_POSITIONS].shape[0],
        n_embd=weights[_EMBEDDING].shape[1],
        n_layer=max(layers) + 1,
        n_head=heads,
        n_inner=weights[_FIRST_MLP].shape[0],
        activation_function=settings.activation,
        layer_norm_epsilon=settings.epsilon,
        tie_word_embeddings=output is None or torch.equal(output, weights[_EMBEDDING]),
        bos_token_id=None,
        eos_token_id=None,
    )


def _gpt2_weights(weights: dict[str, Tensor], config: GPT2Config, path: Path) -> dict[str, Tensor]:
    """transformers' names and layouts: linears transposed, absent biases zero, shared k = v written out."""
    left = dict(weights)
    found = {name: left.pop(name) for name in (_EMBEDDING, _POSITIONS, "lm_head.weight") if name in left}
    parts = [(f"h.{layer}.{part}", part) for layer in range(config.n_layer) for part in _PARTS]
    for module, part in (*parts, ("ln_f", "ln_1")):  # biases are there in every layer or in none
        name = f"transformer.{module}"
        weight, bias = left.pop(f"{name}.weight", None), left.pop(f"{name}.bias", None)
        if weight is None or (bias is None and f"transformer.h.0.{part}.bias" in weights):
            missing = "weight" if weight is None else "bias"
            raise UserError(f"{path} lacks {name}.{missing}; save the whole state dict")
        bias = torch.zeros(weight.shape[0], dtype=weight.dtype) if bias is None else bias
        if part == "attn.c_attn":
            weight, bias = _untied(weight, config.n_embd), _untied(bias, config.n_embd)
        found[f"{name}.weight"] = weight.t() if part in _LINEARS else weight
        found[f"{name}.bias"] = bias
    if left:
        raise UserError(
            f"{path} has weights that nanoGPT's model lacks, e.g. {min(left)}; save it as a Hugging Face "
            "directory of its own architecture"
        )
    # Copies: the source may be a memory map of a file that a training run is about to overwrite.
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in found.items()}


def _untied(tensor: Tensor, width: int) -> Tensor:
    """Rows of q and of the shared k = v become rows of q, k and v; 3-wide tensors stay as they are."""
    if tensor.shape[0] != 2 * width:
        return tensor
    query, shared = tensor.split(width)
    return torch.cat((query, shared, shared))


def _unpadded_vocabulary(settings: Settings, rows: int) -> int | None:
    """The number of tokens that exist, None where all rows of the embedding are tokens or nobody knows."""
    stated = settings.first(VOCABULARY)
    if isinstance(stated, int) and stated < rows:
        return stated
    return _GPT2_VOCABULARY if rows == _GPT2_PADDED else None
