"""The language model inside of a model that also reads images or sound."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from mechint.checkpoints.quiet import quiet
from mechint.errors import UserError, one_line
from mechint.masking.layers import some_tokens

NUM_TOKENS = 8


def text_decoder(model: PreTrainedModel) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The text decoder of a multimodal model with its head, as a language model of its own, and what to say of it.

    The weights are those of the given model, not copies. Where transformers has no class for it, or one that computes
    something else, it is the whole model, which then reads text alone. Other models come back as they are.
    Raises UserError for a model that cannot read text alone.
    """
    config = model.config
    text = config.get_text_config()
    if text is config:
        return model, ()
    tokens = some_tokens(model, 2, NUM_TOKENS)
    model = model.eval()
    try:
        with quiet(), torch.no_grad():
            expected = model(input_ids=tokens, use_cache=False, return_dict=True).logits
    except Exception as error:  # whatever its code raises without an image
        raise UserError(
            f"{config.model_type} does not read text alone ({one_line(error, 120)}); give a language model"
        ) from error
    decoder = _as_language_model(model, text)
    if decoder is not None:
        with quiet(), torch.no_grad():
            if torch.equal(decoder(input_ids=tokens, use_cache=False, return_dict=True).logits, expected):
                return decoder, (
                    f"{config.model_type} is multimodal: its text decoder with its head ({type(decoder).__name__}) is "
                    "analysed, on text alone",
                )
    return model, (f"{config.model_type} is multimodal: it is analysed whole, on text alone",)


def _as_language_model(model: PreTrainedModel, text: Any) -> PreTrainedModel | None:
    """Decoder and output embedding of a model in transformers' class for them, None where they do not fit."""
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    if model_class.config_class is not type(text):
        return None
    text._attn_implementation = model.get_decoder().config._attn_implementation
    with quiet(), torch.device("meta"):
        made: Any = model_class(text)
    if type(made.base_model) is not type(model.get_decoder()):
        return None
    setattr(made, made.base_model_prefix, model.get_decoder())
    made.set_output_embeddings(model.get_output_embeddings())
    if any(parameter.is_meta for parameter in made.parameters()):
        return None
    return made.eval()
