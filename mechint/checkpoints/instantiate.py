"""A configuration and its weights become a model of transformers' own class."""

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import __version__ as transformers_version

from mechint.checkpoints.checkpoint import LoadOptions
from mechint.checkpoints.multimodal import text_decoder
from mechint.checkpoints.quiet import quiet
from mechint.errors import UserError, one_line

# Parameters that one stored number may stand for: tied embeddings are stored once.
MOST_SHARED = 4

# Tensors that older versions of models left in their files, and that hold nothing learned.
_NOT_LEARNED = re.compile(
    r"(^|\.)(inv_freq|rotary\w*\.\w+|freqs\w*|attn\.bias|attention\.bias|masked_bias|causal_mask|position_ids|_extra_state)$"
)

# What wrappers of a training run put into the names of weights, at any place.
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def causal_class(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """transformers' language model class for a configuration, and the configuration it takes.

    For a multimodal model it is the class of the whole. Raises `UserError` for models that are not decoder-only
    language models with attention.
    """
    kind, text = config.model_type, config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{kind} is an encoder-decoder model; give a decoder-only language model")
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    whole: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if causal is None and whole is None:
        raise UserError(
            f"{kind} is not a decoder-only language model in transformers {transformers_version}; give one that is"
        )
    if not _has_attention_heads(text):
        raise UserError(
            f"{kind} has no attention heads in its configuration, so it has no keys and values to mask; "
            "give another model"
        )
    if whole is None:
        return causal, text if causal.config_class is type(text) else config
    of_text_alone = causal is not None and causal.config_class is type(text)
    if of_text_alone and causal.__name__ in (config.architectures or ()):
        return causal, text
    return whole, config


def instantiate(
    config: PreTrainedConfig, weights: dict[str, Tensor], options: LoadOptions, source: Path
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model with these weights, on the CPU, and notes; errors as `from_pretrained`."""
    model_class, config = causal_class(config)
    empty = _empty(model_class, config, weights, source)
    weights, notes = _plain_names(weights, empty)
    _refuse_whole_numbers(weights, empty, source)
    model, unused = from_pretrained(model_class, source, options, None, config=config, state_dict=weights)
    model, said = text_decoder(model)
    return model, (*said, *notes, *unused)


def _empty(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, Tensor], source: Path
) -> PreTrainedModel:
    """The model without memory. Raise UserError where a configuration asks for much more than its weights fill."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or not 1 <= layers <= len(weights):
        raise UserError(
            f"{source}: its configuration says num_hidden_layers={layers}, which does not fit its {len(weights)} "
            "tensors; check that the two belong together"
        )
    try:
        with quiet(), torch.device("meta"):
            # Which attention runs is not the checkpoint's choice, here neither.
            empty = cast(Any, model_class)._from_config(config, attn_implementation="eager")
            wanted = sum(parameter.numel() for parameter in empty.parameters())
    except Exception as error:
        raise UserError(
            f"{source} cannot be loaded as {model_class.__name__} ({one_line(error)}); check its config.json"
        ) from error
    there = sum(tensor.numel() for tensor in weights.values())
    if wanted > MOST_SHARED * there:
        raise UserError(
            f"{source} does not fit its configuration, which asks for {wanted:,} parameters where the weights hold "
            f"{there:,}; check that the two belong together"
        )
    return empty


def _plain_names(
    weights: dict[str, Tensor], empty: PreTrainedModel
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights without what wrappers of a training run (compile, DDP, FSDP, Lightning, ...) put into their names."""
    names = empty.state_dict().keys()
    plain = {name if name in names else WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    embedding = empty.get_input_embeddings()
    wanted = next(f"{name}.weight" for name, module in empty.named_modules() if module is embedding)
    ends = [name for name in plain if name.endswith(f".{wanted}")]
    if wanted not in plain and len(ends) == 1:
        prefix = ends[0].removesuffix(wanted)
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    changed = next((name for name in weights if name not in plain), None)
    if changed is None:
        return weights, ()
    return plain, (f"names of weights were cleaned of a wrapper's prefix, e.g. {changed}",)


def _refuse_whole_numbers(weights: dict[str, Tensor], empty: PreTrainedModel, source: Path) -> None:
    """Raise UserError where learned weights are whole numbers: packed ones, without what unpacks them."""
    learned = {name for name, _ in empty.named_parameters()}
    whole = [name for name in learned & weights.keys() if not weights[name].is_floating_point()]
    if whole:
        raise UserError(
            f"{source} holds {len(whole)} weights as whole numbers ({weights[min(whole)].dtype}), e.g. {min(whole)}: "
            "it is quantised and does not say how; give the unquantised model that it was made from"
        )


def from_pretrained(
    model_class: type[PreTrainedModel], source: Path, options: LoadOptions, *args: Any, **kwargs: Any
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """transformers' `from_pretrained` without its silent repairs, and notes on unused weights.

    Raises `UserError` if a weight is missing (transformers would initialise it at random) or has another
    shape, or the attention implementation is not there for this model.
    """
    try:
        with quiet():
            model, report = cast(Any, model_class).from_pretrained(
                *args,
                **kwargs,
                dtype=options.dtype,
                attn_implementation=options.attention,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        if options.attention is not None and re.search(r"attention|attn", str(error), re.IGNORECASE):
            raise UserError(
                f"model.attention={options.attention} does not work for {model_class.__name__} "
                f"({one_line(error, 160)}); use model.attention=auto"
            ) from error
        raise UserError(
            f"{source} cannot be loaded as {model_class.__name__} ({one_line(error)}); check its config.json"
        ) from error
    return model, _check_report(report, source, model, options.ignore)


def _check_report(
    report: dict[str, Any], source: Path, model: PreTrainedModel, ignore: tuple[str, ...]
) -> tuple[str, ...]:
    class_name = type(model).__name__
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{source} lacks {len(missing)} of the weights of {class_name}, e.g. {missing[0]}; they would be "
            "random: complete the checkpoint, or check that its configuration belongs to it"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise UserError(
            f"{source} does not fit its configuration: {name} is {tuple(found)} in the weights and "
            f"{tuple(expected)} in {class_name}; check that the two belong together"
        )
    unused = sorted(report["unexpected_keys"])
    if inside := [name for name in unused if _belongs_to_a_layer(name, model) and not _ignored(name, ignore)]:
        ends = dict.fromkeys(".".join(name.split(".")[-2:]) for name in inside)
        raise UserError(
            f"{source} has {_tensors(inside)} in its layers that {class_name} does not use, e.g. {inside[0]}; "
            "without them it would compute something else. Check its config.json, merge an adapter first, or, if they "
            f"change nothing, give 'model.ignore=[{','.join(list(ends)[:8])}]'"
        )
    if unused:
        return (f"not used by {class_name}: {_tensors(unused)} of the checkpoint, e.g. {unused[0]}",)
    return ()


def _belongs_to_a_layer(name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor would be part of a layer that the model has, and so of what that computes."""
    if _NOT_LEARNED.search(name):
        return False
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    layers = {
        f"{path}.{number}"
        for path in lists
        for number in range(len(cast(nn.ModuleList, model.get_submodule(path))))
    }
    parts = f"{model.base_model_prefix}.{name.removeprefix(f'{model.base_model_prefix}.')}".split(".")
    starts = {".".join(whole[:end]) for whole in (parts, name.split(".")) for end in range(1, len(whole))}
    return bool(starts & layers)


def _tensors(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _ignored(name: str, ignore: tuple[str, ...]) -> bool:
    return any(name == given or name.endswith(f".{given}") for given in ignore)


def _has_attention_heads(config: PreTrainedConfig) -> bool:
    try:
        return getattr(config, "num_attention_heads", None) is not None
    except RuntimeError:  # transformers refuses to name one number where it differs between layers
        return True
