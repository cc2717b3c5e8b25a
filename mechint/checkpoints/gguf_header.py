"""What a GGUF file says about its model that transformers' reader leaves out, carried over or refused by name.

The keys are those of llama.cpp (gguf-py/gguf/constants.py); what they mean is told by its code (src/llama-model.cpp).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from mechint.checkpoints.gguf_reader import gguf_reader
from mechint.errors import UserError, one_line

# Tensors that are no weights: what rotary frequencies are divided by.
FREQUENCY_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# Attributes of a configuration that keys stand for which transformers' reader does not know in every architecture.
_SAME_AS = {
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("v_head_dim", "head_dim"),
    "attention.sliding_window": ("sliding_window",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "use_parallel_residual": ("use_parallel_residual",),
    "context_length": ("max_position_embeddings", "n_positions"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "vocab_size": ("vocab_size",),
}
_HARMLESS = re.compile(
    r"tensor_data_layout|rope\.scaling\.finetuned|block_count|embedding_length|pooling_type"
)


@dataclass(frozen=True)
class Header:
    """A GGUF file's settings of the model, without the architecture's name before them, and its tensors' names.

    factors: what rotary frequencies are divided by, under the names of FREQUENCY_FACTORS.
    """

    architecture: str
    settings: dict[str, Any]
    tensors: tuple[str, ...]
    factors: dict[str, list[float]]
    adds_bos: bool | None


def read_header(file: Path) -> Header:
    """The header of a GGUF file. Raises UserError for a damaged one."""
    reader = gguf_reader(file)
    try:
        architecture = str(reader.fields["general.architecture"].contents())
        prefix = f"{architecture}."
        settings = {
            name.removeprefix(prefix): field.contents()
            for name, field in reader.fields.items()
            if name.startswith(prefix)
        }
        factors = {
            tensor.name: [float(value) for value in tensor.data.ravel()]
            for tensor in reader.tensors
            if tensor.name in FREQUENCY_FACTORS
        }
        bos = reader.fields.get("tokenizer.ggml.add_bos_token")
        return Header(
            architecture,
            settings,
            tuple(tensor.name for tensor in reader.tensors),
            factors,
            None if bos is None else bool(bos.contents()),
        )
    except Exception as error:  # of many kinds, for entries that are damaged
        raise UserError(
            f"{file} is not a GGUF file, or a damaged one ({one_line(error, 100)}); copy it again"
        ) from error


def carry_over(
    header: Header, config: PreTrainedConfig, ignore: Sequence[str], file: Path
) -> tuple[str, ...]:
    """Set in a configuration what the header says and transformers' reader leaves out; say what was set.

    ignore: keys to take as harmless. Raises UserError for a key that is left out, could change what the model computes
    and has no place in the configuration.
    """
    notes = _carry_rotation(header, config, ignore, file)
    # Where the value is None, transformers' reader knows the key and drops it.
    known: dict[str, str | None] = dict(cast(Any, GGUF_CONFIG_MAPPING).get(config.model_type, {}))
    mapped = {key for key, name in known.items() if name is not None}
    unknown = []
    for key, value in header.settings.items():
        if key.startswith("rope.") or key in mapped or key in ignore or _HARMLESS.fullmatch(key):
            continue
        name = next((name for name in _SAME_AS.get(key, ()) if hasattr(config, name)), None)
        if key == "attention.causal" and value:
            continue
        if name is None:
            unknown.append(f"{key}={value!r}"[:60])
        elif not _equal(getattr(config, name), value):
            setattr(config, name, value)
            notes += (f"{header.architecture}.{key}={value} of the file's header is used as {name}",)
    if unknown:
        raise UserError(
            f"{file} says {', '.join(unknown[:4])} in its header, which transformers cannot carry over to "
            f"{config.model_type}; give the model as a Hugging Face directory, or, if it changes nothing, give "
            f"'model.ignore=[{','.join(entry.partition('=')[0] for entry in unknown)}]'"
        )
    return notes


def refuse_unused_tensors(header: Header, model: PreTrainedModel, ignore: Sequence[str], file: Path) -> None:
    """Raise UserError for tensors that transformers' reader would drop in silence, such as biases without a place."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        LlamaTensorProcessor,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    if processor not in (TensorProcessor, LlamaTensorProcessor):
        return  # these rename and split tensors in ways of their own
    known = set(get_gguf_hf_weights_map(model, processor(config=model.config.to_dict())))
    left = [name for name in header.tensors if name not in known | {*FREQUENCY_FACTORS, *ignore}]
    if left:
        raise UserError(
            f"{file} has {len(left)} tensors that {type(model).__name__} has no place for, e.g. {left[0]}; give the "
            "model as a Hugging Face directory"
        )


def _carry_rotation(
    header: Header, config: PreTrainedConfig, ignore: Sequence[str], file: Path
) -> tuple[str, ...]:
    stated = {key.removeprefix("rope."): v for key, v in header.settings.items() if key.startswith("rope.")}
    stated = {key: value for key, value in stated.items() if f"rope.{key}" not in ignore}
    stated.pop("freq_base", None)
    notes = _carry_rotated_part(stated.pop("dimension_count", None), config, file)
    scaling = {
        key.removeprefix("scaling."): stated.pop(key) for key in list(stated) if key.startswith("scaling.")
    }
    scaling.pop("finetuned", None)
    if (linear := stated.pop("scale_linear", None)) is not None and linear != 1:
        scaling = {"type": "linear", "factor": linear}
    if "freq_base_swa" in stated and _sections(config) is not None:
        stated.pop("freq_base_swa")
    if stated:
        raise UserError(
            f"{file} says rope.{next(iter(stated))}={next(iter(stated.values()))!r} in its header, which transformers "
            "cannot carry over; give the model as a Hugging Face directory"
        )
    made = _rotation(scaling, header.factors, config, file)
    if not made:
        return notes
    parameters = _sections(config)
    if parameters is None:
        raise UserError(
            f"{file} scales its rotary embedding ({made['rope_type']}), which transformers' {config.model_type} cannot "
            "do; give the model as a Hugging Face directory"
        )
    parameters |= made
    shown = {key: value for key, value in made.items() if not isinstance(value, list)}
    return (*notes, f"rotary scaling of the file's header: {shown}")


def _sections(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The rotary parameters that scaling applies to: those of full attention where there are several."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return None
    return parameters.get("full_attention", parameters)


def _rotation(
    scaling: dict[str, Any], factors: dict[str, list[float]], config: PreTrainedConfig, file: Path
) -> dict[str, Any]:
    """transformers' rotary parameters for what the file says, {} for no scaling."""
    kind, factor = str(scaling.pop("type", "none")), scaling.pop("factor", None)
    original = scaling.pop("original_context_length", None)
    strength = scaling.pop("attn_factor", scaling.pop("yarn_attn_factor", None))
    made: dict[str, Any] = {}
    if factors:
        positions = int(getattr(config, "max_position_embeddings", 0))
        whole = factors.get("rope_freqs.weight")
        made = {
            "rope_type": "longrope",
            "short_factor": whole or factors.get("rope_factors_short.weight"),
            "long_factor": whole or factors.get("rope_factors_long.weight"),
            "original_max_position_embeddings": positions if whole or original is None else int(original),
        }
        if whole:
            made |= {"factor": 1.0, "attention_factor": 1.0}
        elif strength is not None:
            made["attention_factor"] = float(strength)
        if None in made.values():
            raise UserError(f"{file} lacks one of {', '.join(FREQUENCY_FACTORS[1:])}; copy it again")
        if kind not in ("none", "longrope", "linear") or (
            whole and kind != "none" and factor not in (None, 1.0)
        ):
            raise UserError(f"{file} scales its rotary embedding twice ({kind} and {', '.join(factors)})")
    elif kind == "linear" and factor not in (None, 1.0):
        made = {"rope_type": "linear", "factor": float(factor)}
    elif kind == "yarn":
        made = {"rope_type": "yarn", "factor": float(factor or 1.0)}
        if original is not None:
            made["original_max_position_embeddings"] = int(original)
        for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if theirs in scaling:
                made[ours] = float(scaling.pop(theirs))
        if strength not in (None, 1.0):
            made["attention_factor"] = float(strength) * (1 + 0.1 * math.log(made["factor"]))
        if scaling.pop("yarn_ext_factor", 1.0) != 1.0:
            scaling["yarn_ext_factor"] = "not 1"
    elif kind not in ("none", "linear", "longrope"):
        scaling["type"] = kind
    if scaling:
        name, value = next(iter(scaling.items()))
        raise UserError(
            f"{file} says rope.scaling.{name}={value!r} in its header, which transformers cannot carry over; give the "
            "model as a Hugging Face directory"
        )
    return made


def _carry_rotated_part(stated: Any, config: PreTrainedConfig, file: Path) -> tuple[str, ...]:
    """Make the configuration rotate as many channels of a head as the file says."""
    parameters = _sections(config)
    if stated is None or parameters is None:
        return ()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    part = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    rotated = int(head * (1.0 if part is None else part))
    if stated == rotated or stated == getattr(config, "qk_rope_head_dim", None):
        return ()
    if part is None:
        raise UserError(
            f"{file} rotates {stated} of the {head} channels of a head, which transformers' {config.model_type} cannot "
            "do; give the model as a Hugging Face directory"
        )
    parameters["partial_rotary_factor"] = stated / head
    return (f"{stated} of the {head} channels of a head are rotated, as the file's header says",)


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, list) and theirs:
        return all(_equal(ours, value) for value in theirs)
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return abs(ours - theirs) <= 1e-6 * max(abs(ours), abs(theirs))
    return bool(ours == theirs)
