"""A configuration and its weights become a model of transformers' own class."""

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version

from mechint.checkpoints.checkpoint import LoadOptions
from mechint.checkpoints.quiet import quiet
from mechint.errors import UserError, one_line

# Parameters that one stored number may stand for: tied embeddings are stored once.
MOST_SHARED = 4


def causal_class(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """transformers' language model class for a configuration, and the (text) configuration it takes.

    Raises `UserError` for models that are not decoder-only language models with attention.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{kind} is an encoder-decoder model; give a decoder-only language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{kind} is not a decoder-only language model in transformers {transformers_version}; give one that is"
        )
    model_class = cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    text_config = config.get_text_config()
    if text_config is not config and model_class.config_class is not type(text_config):
        raise UserError(f"{kind} is a multimodal model; save its text decoder alone and give that")
    if not _has_attention_heads(text_config):
        raise UserError(
            f"{kind} has no attention heads in its configuration, so no keys and values to mask; give another"
        )
    return model_class, text_config


def instantiate(
    config: PreTrainedConfig, weights: dict[str, Tensor], options: LoadOptions, source: Path
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model with these weights, on the CPU, and notes; errors as `from_pretrained`."""
    model_class, config = causal_class(config)
    _refuse_larger(model_class, config, weights, source)
    return from_pretrained(model_class, source, options, None, config=config, state_dict=weights)


def _refuse_larger(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, Tensor], source: Path
) -> None:
    """Raise UserError, before memory is taken, where a configuration asks for much more than its weights fill."""
    layers = getattr(config, "num_hidden_layers", None)
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
    return model, _check_report(report, f"{source}", model_class.__name__)


def _check_report(report: dict[str, Any], source: str, class_name: str) -> tuple[str, ...]:
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
    if unused := sorted(report["unexpected_keys"]):
        return (f"{len(unused)} tensors of the checkpoint are not used by {class_name}, e.g. {unused[0]}",)
    return ()


def _has_attention_heads(config: PreTrainedConfig) -> bool:
    try:
        return getattr(config, "num_attention_heads", None) is not None
    except RuntimeError:  # transformers refuses to name one number where it differs between layers
        return True
